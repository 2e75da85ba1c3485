"""What signals do while an iteration runs."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class LeftError(KeyboardInterrupt):
    """A second signal: what is being done is left to the next run."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Has a polite request to end, and a terminal that goes away, interrupt as Ctrl-C does."""
    told = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal told
        del frame
        if not told:  # another one would interrupt what the first one has to end
            told = True
            raise KeyboardInterrupt
        log.warning("%s: is being ended already", signal.Signals(number).name)

    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def patient(
    what: str = "the server is being brought back", *, firm: bool = False, last: bool = False
) -> Iterator[None]:
    """The first signal in this block interrupts at its end; a second one at once.

    Args:
        what: What is done in it, for messages.
        firm: Whether a second one waits too.
        last: Whether the first one is only told: nothing comes after the block.
    """
    count = 0

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal count
        del frame
        count += 1
        if count > 1 and not firm:
            raise LeftError
        more = "" if firm else "; again, and it is left to the next run"
        log.warning("%s: %s first%s", signal.Signals(number).name, what, more)

    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), told):
        yield
    if count and not last:
        raise KeyboardInterrupt


@contextmanager
def _handling(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Has signals handled so in this block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays so: `nohup` does that with SIGHUP.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
