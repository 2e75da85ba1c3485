"""Which model an inference server should have, and whether it has that one."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ebm_encode.errors import ServerError
from ebm_encode.pipeline.asking import Answer, is_model, listens_since
from ebm_encode.pipeline.config import ServerTable, placed
from ebm_encode.pipeline.contents import changed_at, digest_path
from ebm_encode.pipeline.intent import STARTED, Intent, Start
from ebm_encode.pipeline.processes import Started
from ebm_encode.pipeline.records import read_known

log = logging.getLogger(__name__)

_TOLERANCE = 1.0
"""Seconds by which the start of a process may be told wrong."""
HUB = "hf://"
"""Before a model that is no path, but one of the hub."""


class ModelNotMadeError(ServerError):
    """The model that a server had is being replaced; a step must make the new one first."""


class RightModel:
    """The model of one server.

    Args:
        table: The server.
        folder: Where it is written down with which model it was started.
        directory: Where relative paths begin.
        model_is_made: Tells whether a model is there, as the step left it that makes it.
        made_at: Tells when a step here made a model, seconds since 1970; `None` if none did.
    """

    def __init__(
        self,
        table: ServerTable,
        folder: Path,
        directory: Path,
        *,
        model_is_made: Callable[[str], bool],
        made_at: Callable[[str], float | None],
    ) -> None:
        self._table = table
        self._folder = folder
        self._directory = directory
        self._made_at = made_at
        given = table.model
        is_hub = given is not None and given.startswith(HUB)
        self._model = None if given is None else given.removeprefix(HUB)
        self._model_is_made = (lambda _: True) if is_hub else model_is_made

    def expected(self, intent: Intent | None, answer: Answer) -> str | None:
        """The model that it should have: the new one once that is made, else the one before."""
        if self._model is not None and self._model_is_made(self._model):
            return self._model
        names = intent.names if intent is not None else ()
        names = names or self.names_before(answer)
        if not names:
            return None
        if self._model is not None and is_model(names, self._model, self._directory):
            raise ModelNotMadeError(
                f"{self._table.url}: {self._model} is not as the step that makes it left it,"
                " so no server is started with it\nhint: run that step again; the server comes"
                " back after it"
            )
        paths = [name for name in names if self._is_there(name)]
        return (paths or [*names])[0]

    def names_before(self, answer: Answer) -> tuple[str, ...]:
        """What it calls its model, or else which one it was started with."""
        start = read_known(self._folder / STARTED, Start)
        known = start is not None and start.model and self._is_there(start.model)
        if start is None or not known or any(map(self._is_there, answer.names)):
            return answer.names
        # An alias is nothing to start a server with; but it may be another server that has it.
        is_ours = _lives(self._folder) or self._table.served_name in answer.names
        return (start.model, *answer.names) if is_ours or not answer.names else answer.names

    def _is_there(self, model: str) -> bool:
        return placed(self._directory, model).exists()

    def is_right(self, answer: Answer, expected: str | None) -> bool:
        """Whether a server has a model, as its folder is now; any is right where none is known."""
        if expected is None:
            return True
        if not self._is_called(answer.names, expected):
            return False
        # Its folder's contents may have been replaced since it was started.
        start = read_known(self._folder / STARTED, Start) or Start()
        is_same = is_model([start.model], expected, self._directory) if start.model else False
        if is_same and start.digest == self.digest(expected):
            return True
        if start.model and _lives(self._folder):
            return False
        return self._listens_since(expected, started_with=is_same)

    def _listens_since(self, expected: str, *, started_with: bool) -> bool:
        """Whether a server that calls itself so began after its model was as it is now.

        Args:
            expected: The model.
            started_with: Whether it was started here with that model, which was changed since.
        """
        listens = listens_since(self._table.url)
        if started_with:
            return listens is not None and listens > self._changed_since(expected)
        since = self._made_at(expected)
        if since is not None and listens is None:
            log.warning(
                "%s: it is not known since when it runs, and so not whether it has %s as it is now",
                *(self._table.url, expected),
            )
            return True
        return since is None or (listens is not None and listens >= since)

    def _changed_since(self, expected: str) -> float:
        """When a model that was changed since a start here was so at the latest; 1970 seconds.

        A folder that is moved in keeps its times, and may be one above the model's. So a server
        that may be the one of that start, which returned at once, has the former contents.
        """
        started = Started.read(self._folder / STARTED)
        begun = 0.0 if started is None else started.created + self._table.start_seconds
        changed = changed_at(placed(self._directory, expected))
        return max(self._made_at(expected) or 0.0, begun, changed) + _TOLERANCE

    def _is_called(self, names: Sequence[str], expected: str) -> bool:
        """Whether one of its names is that of the model, and none the path of another one."""
        is_new = is_model(names, expected, self._directory)
        if self._table.served_name is None:
            return is_new
        paths = [name for name in names if self._is_there(name)]
        return self._table.served_name in names and (is_new or not paths)

    def digest(self, model: str) -> str:
        """Digest of a model's folder; empty for hub ids."""
        path = placed(self._directory, model)
        return digest_path(path) if path.exists() else ""


def _lives(folder: Path) -> bool:
    """Whether something of the process lives that was started here."""
    started = Started.read(folder / STARTED)
    return started is not None and bool(started.processes())
