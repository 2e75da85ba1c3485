"""The row checks over the embeddings of one call, and the second chance at batch size 1."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode._core import BadRow
from ebm_encode.equal_embeddings import TokenClasses
from ebm_encode.errors import EncodingError
from ebm_encode.prompts.tokens import Tokens
from ebm_encode.reports import RowReport, without_embedding

log = logging.getLogger(__name__)


class RowChecks:
    """Checks embeddings together, re-encodes the bad ones unbatched, and checks again.

    Args:
        classes: Which token sequences may have equal embeddings.
        run_unbatched: The embedding of one sequence, by the reference.
    """

    def __init__(
        self,
        classes: TokenClasses,
        run_unbatched: Callable[[NDArray[np.uint32]], NDArray[np.float32]],
    ) -> None:
        self._classes = classes
        self._run_unbatched = run_unbatched

    def apply(
        self,
        states: Sequence[str],
        tokens: Tokens,
        out: NDArray[np.float32],
        reports: list[RowReport],
    ) -> None:
        """Checks the embeddings of a call.

        Args:
            states: The states.
            tokens: Their sequences.
            out: Their embeddings, float32 `[n, dim]`; bad ones are replaced.
            reports: One for each; those of states without a valid embedding are replaced.
        """
        for attempt in ("batched", "unbatched"):
            good = [i for i, report in enumerate(reports) if report.status == "ok"]
            embeddings = out if len(good) == len(states) else out[good]
            verdicts = self._verdicts([states[i] for i in good], tokens.select(good), embeddings)
            bad = {i: verdict for i, verdict in zip(good, verdicts, strict=True) if verdict}
            for i, verdict in bad.items():
                if attempt == "unbatched":
                    length = int(tokens.full_lengths[i])
                    reports[i] = RowReport("bad", length, reason=verdict.reason)
                    continue
                log.warning("state %d: %s; re-encoding it at batch size 1", i, verdict.reason)
                self._redo(i, tokens, out, reports)
                if verdict.other_row is not None:  # either of two equal embeddings may be wrong
                    self._redo(good[verdict.other_row], tokens, out, reports)
            if not bad:
                return

    def _verdicts(
        self, states: list[str], tokens: Tokens, embeddings: NDArray[np.float32]
    ) -> list[BadRow | None]:
        """Why embeddings of one call are bad; `None` for good ones, and for equal ones that may."""
        first: dict[bytes, int] = {}
        # A number for each set of states whose embeddings may be equal.
        keys = [self._classes.of(tokens[i]).tobytes() for i in range(len(tokens))]
        classes = np.array([first.setdefault(key, i) for i, key in enumerate(keys)], np.uint32)
        offsets = np.arange(len(classes) + 1, dtype=np.int64)
        return _core.check_rows(states, classes, offsets, embeddings)

    def _redo(
        self, i: int, tokens: Tokens, out: NDArray[np.float32], reports: list[RowReport]
    ) -> None:
        """Runs one sequence unbatched, and reports it if that makes no embedding."""
        try:
            out[i] = self._run_unbatched(tokens[i])
        except EncodingError as error:
            reports[i] = without_embedding(tokens, i, error)
