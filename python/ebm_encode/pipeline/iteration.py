"""Runs the steps of an iteration that are not done, and brings the server back in every way out."""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import filelock

from ebm_encode._core import __version__
from ebm_encode.errors import ArgumentError, EbmEncodeError, InputError, PipelineError
from ebm_encode.pipeline.config import Config, absolute
from ebm_encode.pipeline.contents import MISSING, digest_path, newest_change
from ebm_encode.pipeline.figures import figures_of
from ebm_encode.pipeline.gpu import wait_for_memory
from ebm_encode.pipeline.plan import Verdict, command_digest, in_range, judge, plan
from ebm_encode.pipeline.processes import Started, start
from ebm_encode.pipeline.records import Attempt, Record, write_json
from ebm_encode.pipeline.server import InferenceServer, ModelNotMadeError
from ebm_encode.pipeline.steps import Step, steps_of
from ebm_encode.pipeline.summary import RunState, StepSummary, Summary
from ebm_encode.servers.guard.memory import free_memory_of_gpus

log = logging.getLogger(__name__)

RUNNING = "running.json"
SUMMARY = "summary.json"
_POLL_SECONDS = 0.2
_TAIL_LINES = 5
_TAIL_BYTES = 4096

Progress = Callable[[str, float, str], None]
"""Is told a step's name, its seconds so far, and the last line of its log."""


@dataclass
class _Run:
    """What one run knows of its steps so far, and how it ends."""

    verdicts: list[Verdict] = field(default_factory=list)
    states: dict[str, StepSummary] = field(default_factory=dict)
    current: Step | None = None
    state: RunState = "done"
    error: str = ""

    def end(self, state: RunState, error: str) -> None:
        """Notes what went wrong, and with which step; what is noted first remains."""
        self.state = state if self.state == "done" else self.state
        self.error = "\n".join(filter(None, (self.error, error)))
        if self.current is not None and self.state != "done":
            name = self.current.name
            self.states[name] = StepSummary(name, self.state, why=error)
            self.current = None


class Iteration:
    """The steps of a configuration in a folder.

    Args:
        config: The configuration.
        folder: Where records and logs are; made if it is not there.
        directory: Where relative paths begin, and the working directory of all commands.
        free_memory: Free bytes of each GPU; by default as the driver has them.

    Raises:
        ArgumentError: If the steps do not fit each other.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        directory: Path,
        *,
        free_memory: Callable[[], Sequence[int]] = free_memory_of_gpus,
    ) -> None:
        self._config = config
        self.folder = folder
        self._free_memory = free_memory
        self.steps = steps_of(config, folder, directory)
        self._directory = directory
        self.server: InferenceServer | None = None
        if config.server is not None:
            self.server = InferenceServer(
                config.server,
                folder,
                directory,
                model_is_made=self._is_made,
                free_memory=lambda: sum(free_memory()),
            )

    def plan(self) -> list[Verdict]:
        """What is to be done about each step; nothing is changed.

        Raises:
            InputError: If a file or record cannot be read.
        """
        return plan(self.steps, self.folder)

    def recover(self) -> str:
        """Ends what an interrupted run left behind, and has the server answer with its model.

        Returns:
            What was done about the server, to be read.

        Raises:
            ServerError: If the server does not come back.
        """
        with self._alone(), _patient():
            self._end_leftovers()
            return "" if self.server is None else self.server.restore()

    def run(
        self, *, first: str | None = None, last: str | None = None, progress: Progress | None = None
    ) -> Summary:
        """Runs what is not done, in order, and stops at the first step that fails.

        Args:
            first: The step to begin with; those before it must be done.
            last: The step to end with.
            progress: Is told what runs, a few times a second.

        Raises:
            ArgumentError: If there is no such step, one before `first` is not done, or another run
                is at work in the folder.
            InputError: If a file or record cannot be read.
        """
        begin, end = in_range(self.steps, first, last)
        with self._alone(), _interruptible():
            began, run = time.monotonic(), _Run()
            self._end_leftovers()
            self._recover_first()
            try:
                run.verdicts = self.plan()
                self._require_done(run.verdicts[:begin])
                for verdict in run.verdicts[begin:end]:
                    self._take(run, verdict, progress)
            except ArgumentError:
                self._bring_back()
                raise
            except EbmEncodeError as failure:
                run.end("failed", str(failure))
            except KeyboardInterrupt:
                run.end("interrupted", "interrupted\nhint: the same command resumes")
            except BaseException:
                self._bring_back()
                raise
            server = ""
            try:
                server = self._bring_back()
            except EbmEncodeError as failure:
                run.end("failed", str(failure))
                server = "is not back"
            rows, seconds = self._rows(run, begin, end), round(time.monotonic() - began, 3)
            summary = Summary(run.state, rows, server, run.error, seconds)
            try:
                write_json(self.folder / SUMMARY, summary.to_json())
            except OSError as error:
                log.warning("%s: cannot be written (%s)", self.folder / SUMMARY, error)
            return summary

    def _recover_first(self) -> None:
        """Brings a server back that an interrupted run left.

        Raises:
            ServerError: If it does not come back; nothing runs then.
        """
        if self.server is None or not self.server.touched:
            return
        try:
            with _patient():
                log.info("an interrupted run left the server: it %s", self.server.restore())
        except ModelNotMadeError as error:
            log.warning("%s", error)

    def _take(self, run: _Run, planned: Verdict, progress: Progress | None) -> None:
        """Runs a step unless it is done; steps before it may have given what it reads by now."""
        step = planned.step
        verdict = judge(step, self.folder)
        if verdict.done and verdict.record is not None:
            record = verdict.record
            run.states[step.name] = StepSummary(
                step.name, "kept", record.seconds, [*record.outputs], record.figures
            )
            return
        run.current = step
        missing = [path for path, digest in verdict.inputs.items() if digest == MISSING]
        if missing:
            raise PipelineError(
                f"step {step.name}: its input {missing[0]} is not there\nhint: is it the output of"
                " a step? then name it so in `outputs`"
            )
        if self.server is not None and step.server == "stop":
            log.info("%s: the server gives its memory back", step.name)
            self.server.free()
        if self.server is not None and step.server == "run":
            with _patient():
                log.info("%s: the server %s", step.name, self.server.restore())
        if step.gpu_memory:
            wait_for_memory(step.gpu_memory, self._config.gpu.wait_seconds, free=self._free_memory)
        log.info("%s: runs (%s)", step.name, "; ".join(verdict.reasons[:2]))
        run.states[step.name] = self._execute(verdict, progress)
        run.current = None

    def _execute(self, verdict: Verdict, progress: Progress | None) -> StepSummary:
        step = verdict.step
        try:
            command = self._command(verdict)
            began, clock = time.time(), time.monotonic()
            self._run_process(step, command, progress)
            seconds = time.monotonic() - clock
            outputs = self._outputs(verdict, began)
            record = Record(
                step=step.name,
                command=command_digest(step),
                shown=" ".join(step.command),
                inputs=verdict.inputs,
                outputs=outputs,
                seconds=round(seconds, 3),
                ended=datetime.now(UTC).isoformat(timespec="seconds"),
                figures=figures_of(step.own, step.result, self._log(step)),
                version=__version__,
            )
            record.write(self.folder)
            Attempt.remove(self.folder, step.name)
        except OSError as error:
            raise PipelineError(f"step {step.name}: {error}\nhint: is the disk full?") from error
        return StepSummary(
            step.name, "done", seconds, [*outputs], record.figures, "; ".join(verdict.reasons)
        )

    def _command(self, verdict: Verdict) -> list[str]:
        """The command, after writing down that it is tried."""
        step, former = verdict.step, Attempt.read(self.folder, verdict.step.name)
        attempt = former
        if attempt is None or attempt.key != verdict.key:
            before = {str(output): digest_path(output) for output in step.outputs}
            replaces = verdict.replaces or former is not None
            attempt = Attempt(verdict.key, before, replaces)
            attempt.write(self.folder, step.name)
        command = [*step.command]
        written = step.outputs[0]
        untouched = digest_path(written) == attempt.before.get(str(written))
        # What this attempt has written itself is kept.
        if step.own == "encode" and attempt.replaces and untouched and "--overwrite" not in command:
            command.append("--overwrite")
        return command

    def _run_process(self, step: Step, command: Sequence[str], progress: Progress | None) -> None:
        path = self._log(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        result = None if step.result is None else step.result.with_name(f".{step.result.name}.tmp")
        with (
            path.open("wb") as file,
            nullcontext(file) if result is None else result.open("wb") as output,
        ):
            started, process = start(
                command,
                name=f"step {step.name}",
                written=self.folder / RUNNING,
                directory=step.directory,
                environment=step.environment,
                output=output,
                errors=file,
            )
            try:
                self._wait(step, process, progress)
            finally:
                # Whatever it left behind; then it may still have been at work.
                started.end()
                process.wait()
                (self.folder / RUNNING).unlink(missing_ok=True)
        if process.returncode:
            raise PipelineError(self._failure(step, process.returncode))
        if result is not None and step.result is not None:
            result.replace(step.result)

    def _wait(
        self, step: Step, process: subprocess.Popen[bytes], progress: Progress | None
    ) -> None:
        began = time.monotonic()
        while True:
            try:
                process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            else:
                return
            seconds = time.monotonic() - began
            if progress is not None:
                progress(step.name, seconds, (_tail(self._log(step)) or [""])[-1])
            if step.timeout is not None and seconds > step.timeout:
                raise PipelineError(
                    f"step {step.name}: does not end within {step.timeout:g} s\nhint: see"
                    f" {self._log(step)}; the same command resumes"
                )

    def _failure(self, step: Step, code: int) -> str:
        how = f"exits with {code}"
        if code < 0:
            how = f"was ended by signal {signal.Signals(-code).name}"
        lines = "".join(f"\n  {line}" for line in _tail(self._log(step)))
        return (
            f"step {step.name}: {how}{lines}\nhint: see {self._log(step)}; once it is mended, the"
            " same command resumes"
        )

    def _outputs(self, verdict: Verdict, began: float) -> dict[str, str]:
        """Digests of what a step wrote.

        Raises:
            PipelineError: If something was not written.
        """
        step = verdict.step
        found = {str(output): digest_path(output) for output in step.outputs}
        for output, digest in found.items():
            if digest == MISSING:
                raise PipelineError(
                    f"step {step.name}: ended well, and did not write {output}\nhint: see"
                    f" {self._log(step)}"
                )
        other = verdict.changed or verdict.command_changed
        # Files of some systems have whole seconds.
        untouched = all(newest_change(output) < began - 1 for output in step.outputs)
        if step.own is None and other and untouched:
            raise PipelineError(
                f"step {step.name}: its inputs or command changed, and it left its outputs as they"
                " were\nhint: does it skip work that it takes for done? remove its outputs"
            )
        return found

    def _is_made(self, model: str) -> bool:
        """Whether a model is there, as the step left it that makes it."""
        path = absolute(self._directory / model)
        return path.exists() and all(
            self._wrote(step, path) for step in self.steps if path in step.outputs
        )

    def _wrote(self, step: Step, path: Path) -> bool:
        try:
            record = Record.read(self.folder, step.name)
        except InputError:
            return False
        return record is not None and record.outputs.get(str(path)) == digest_path(path)

    def _bring_back(self) -> str:
        if self.server is None:
            return ""
        with _patient():
            return self.server.restore()

    def _require_done(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if not verdict.done:
                raise ArgumentError(
                    f"step {verdict.step.name} comes before, and is not done:"
                    f" {verdict.reasons[0]}\nhint: begin with it"
                )

    def _end_leftovers(self) -> None:
        path = self.folder / RUNNING
        started = Started.read(path)
        if started is None:
            return
        if count := started.end():
            log.warning("%s of an interrupted run ended (%d processes)", started.name, count)
        path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder / "lock", timeout=0)
            lock.acquire()
        except filelock.Timeout as error:
            raise ArgumentError(
                f"{self.folder}: another `ebm-encode iterate` is at work there\nhint: wait for it,"
                " or give this one another [iteration] `folder`"
            ) from error
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error})") from error
        try:
            yield
        finally:
            lock.release()

    def _log(self, step: Step) -> Path:
        return self.folder / "logs" / f"{step.name}.log"

    def _rows(self, run: _Run, begin: int, end: int) -> list[StepSummary]:
        names = [step.name for step in self.steps[begin:end]]
        return [run.states.get(name, StepSummary(name, "not reached")) for name in names]


def _tail(path: Path) -> list[str]:
    """The last lines of a log; bars that were drawn over are not shown."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line][-_TAIL_LINES:]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Has a polite request to end, and a terminal that goes away, interrupt as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def _patient() -> Iterator[None]:
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
