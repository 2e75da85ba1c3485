"""A measuring session: steps with time limits, and results in a file that is whole after each."""

import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class OutOfTime(BaseException):
    """A step is past its limit. No `Exception`, so that nothing on the way takes it for a fault."""


class SkipError(Exception):
    """There is nothing to measure here, and that is no fault."""


class Session:
    """The results so far, the steps that gave them, and the time that is left.

    Args:
        output: JSON file, rewritten after each step.
        seconds: Time for all steps together.

    Attributes:
        results: What is in the file.
    """

    def __init__(self, output: Path, seconds: float) -> None:
        self._output, self._seconds, self._start = output, seconds, time.monotonic()
        self.results: dict[str, Any] = {"complete": False, "steps": []}
        self.write()

    @property
    def left(self) -> float:
        """Seconds of the session that are left."""
        return self._start + self._seconds - time.monotonic()

    def run(
        self,
        name: str,
        work: Callable[[float], Any],
        *,
        section: str,
        limit: float,
        least: float = 1.0,
    ) -> Any:
        """Does a step, if there is time; notes how long it took, why it was skipped or failed.

        Args:
            name: Of the step.
            work: Is called with the seconds that it may take, and gives JSON values: a list, which
                extends the section, or a dictionary, which becomes it.
            section: Where in the results its values go.
            limit: Most seconds; it ends there.
            least: Seconds below which it is not begun.

        Returns:
            What `work` gave, or `None`.
        """
        seconds = min(limit, self.left)
        step: dict[str, Any] = {"step": name}
        found = None
        if seconds < least:
            step["skipped"] = (
                f"no time: {max(self.left, 0):.0f} s of {self._seconds:.0f} s left,"
                f" at least {least:.0f} s needed"
            )
        else:
            start = time.perf_counter()
            try:
                with _at_most(seconds):
                    found = work(seconds)
            except SkipError as reason:
                step["skipped"] = str(reason)
            except OutOfTime:
                step["error"] = f"not finished after {seconds:.0f} s"
            except Exception as error:  # noqa: BLE001  (the next step may work)
                step["error"] = f"{type(error).__name__}: {error}"[:800]
                step["trace"] = traceback.format_exc(limit=-4)
            step["seconds"] = round(time.perf_counter() - start, 2)
        if isinstance(found, list):
            self.results.setdefault(section, []).extend(found)
        elif found is not None:
            self.results[section] = found
        self.results["steps"].append(step)
        self.write()
        shown = {key: value for key, value in step.items() if key != "trace"}
        print(json.dumps(shown | ({} if found is None else {"found": found})), flush=True)
        return found

    def write(self) -> None:
        """Writes the results; a reader sees either those before or these."""
        beside = self._output.with_name(self._output.name + ".part")
        beside.write_text(json.dumps(_finite(self.results), indent=1) + "\n", encoding="utf-8")
        beside.replace(self._output)


def _finite(value: Any) -> Any:
    """JSON values without NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in what takes longer; a call that never returns to Python is not ended."""

    def end(*_: Any) -> None:
        raise OutOfTime

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def timed(work: Callable[[], Any], *, seconds: float, most: int = 3) -> list[float]:
    """Seconds of each of a few rounds; only one where more would take longer than `seconds`."""
    times: list[float] = []
    while len(times) < most and sum(times) + max(times, default=0.0) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times
