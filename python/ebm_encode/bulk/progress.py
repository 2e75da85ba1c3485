"""Progress of a long run: a bar on a terminal, a log line now and then elsewhere, or nothing.

States differ in length by a factor of a thousand, so the share that is done, and with it the time
left, goes by bytes of text; the rates count states and tokens.
"""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class EncodingProgress:
    """Shows how far a run is. Use as a context manager.

    Args:
        states: States to encode.
        size: Bytes of their texts.
        quiet: Whether to show nothing.
        console: Where to draw the bar.
    """

    def __init__(self, states: int, size: int, *, quiet: bool, console: Console) -> None:
        self._states, self._size = states, max(size, 1)
        self._quiet = quiet
        self._done_states = self._done_size = self._done_tokens = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                _Rates(self),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("encoding", total=self._size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and error is None:
            log.info("%s", self.rates())

    def advance(self, states: int, size: int, tokens: int) -> None:
        """Some more states are done, with so many bytes of text and so many tokens."""
        self._done_states += states
        self._done_size += size
        self._done_tokens += tokens
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], size)
        elif not self._quiet and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("%s", self._line())

    def rates(self) -> str:
        """How many states are done, and how fast."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (
            f"{self._done_states:,}/{self._states:,} states, "
            f"{self._done_states / seconds:,.0f} states/s, "
            f"{self._done_tokens / seconds:,.0f} tokens/s"
        )

    def _line(self) -> str:
        share = self._done_size / self._size
        left = (time.monotonic() - self._start) * (1 / max(share, 1e-9) - 1)
        return f"{share:.0%} done, {self.rates()}, about {left:,.0f} s left"


class _Rates(ProgressColumn):
    def __init__(self, progress: EncodingProgress) -> None:
        super().__init__(Column(no_wrap=True))
        self._progress = progress

    def render(self, task: Task) -> Text:
        """The rates beside the bar."""
        del task  # its unit is bytes of text
        return Text(self._progress.rates())
