"""What signals do while an iteration runs."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def interruptible() -> Iterator[None]:
    """Has a polite request to end, and a terminal that goes away, interrupt as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def patient() -> Iterator[None]:
    """The first signal in this block is only told; a second one interrupts."""
    count = 0

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal count
        del frame
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        log.warning(
            "%s: the server is being brought back first; again, and it is left to the next run",
            signal.Signals(number).name,
        )

    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), told):
        yield


@contextmanager
def _handling(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Has signals handled so in this block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
