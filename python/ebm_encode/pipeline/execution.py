"""Runs one step in a process of its own and records it."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ebm_encode._core import __version__
from ebm_encode.errors import PipelineError
from ebm_encode.pipeline.contents import MISSING, digest_path, sync_whole, touch_mark
from ebm_encode.pipeline.figures import figures_of
from ebm_encode.pipeline.plan import Verdict, command_digest
from ebm_encode.pipeline.processes import Started, has_ended, start
from ebm_encode.pipeline.records import Attempt, Record
from ebm_encode.pipeline.signals import patient
from ebm_encode.pipeline.steps import Step
from ebm_encode.pipeline.summary import StepSummary

log = logging.getLogger(__name__)

RUNNING = "running.json"
_POLL_SECONDS = 0.2
_TAIL_LINES = 5
_TAIL_BYTES = 4096

Progress = Callable[[str, float, str], None]
"""Is told a step's name, its seconds so far, and the last line of its log."""


class StepRunner:
    """Runs steps in a folder, one at a time.

    Args:
        folder: The iteration's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._marks: dict[str, str] = {}
        self._again = self._trusted = False

    def run(self, verdict: Verdict, progress: Progress | None) -> StepSummary:
        """Runs a step to its end, and records it.

        Args:
            verdict: The step, and why it runs.
            progress: Is told how it goes, a few times a second.

        Raises:
            PipelineError: If it fails, takes too long, or does not write what it should.
        """
        step = verdict.step
        try:
            command = self._command(verdict)
            clock = time.monotonic()
            self._run_process(step, command, progress)
            seconds = time.monotonic() - clock
            outputs = self._outputs(verdict)
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
            for output in step.outputs:
                sync_whole(output)  # after a power cut the record must not vouch for half of them
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
        # Looked at before anything may write, so that no clock is needed.
        self._marks = _marks(step)
        refused = None if former is None else former.refused
        self._again = former is not None and refused is None
        self._trusted = refused not in (None, self._marks) and MISSING not in self._marks.values()
        attempt = replace(attempt, refused=None)
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
                # Nothing else may begin while something of it still works.
                with patient("the step is being ended", firm=True):
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
            if has_ended(process):
                return
            time.sleep(_POLL_SECONDS)
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
            known = -code in {*map(int, signal.Signals)}
            how = f"was ended by signal {signal.Signals(-code).name if known else -code}"
        lines = "".join(f"\n  {line}" for line in _tail(self._log(step)))
        return (
            f"step {step.name}: {how}{lines}\nhint: see {self._log(step)}; once it is mended, the"
            " same command resumes"
        )

    def _outputs(self, verdict: Verdict) -> dict[str, str]:
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
        if step.own is None:
            self._require_touched(step)
        return found

    def _require_touched(self, step: Step) -> None:
        """Refuses outputs that a step left as they were: it may skip half a file of a killed run.

        Raises:
            PipelineError: Unless the user has touched them since that was told.
        """
        marks = _marks(step)
        touched = [marks[output] != mark for output, mark in self._marks.items()]
        # After a try that did not end well each of them may be half.
        if self._trusted or (all(touched) if self._again else any(touched)):
            return
        attempt = Attempt.read(self.folder, step.name)
        if attempt is not None:
            replace(attempt, refused=marks).write(self.folder, step.name)
        raise PipelineError(
            f"step {step.name}: ended well, and left its outputs as they were, of which it is"
            " not known that they are right\nhint: does it skip what is there? remove its"
            " outputs, or `touch` them if they are right"
        )

    def end_leftovers(self) -> None:
        """Ends the processes of a step that an interrupted run left behind."""
        path = self.folder / RUNNING
        started = Started.read(path)
        if started is None:
            return
        if count := started.end():
            log.warning("%s of an interrupted run ended (%d processes)", started.name, count)
        path.unlink(missing_ok=True)

    def _log(self, step: Step) -> Path:
        return self.folder / "logs" / f"{step.name}.log"


def _marks(step: Step) -> dict[str, str]:
    return {str(output): touch_mark(output) for output in step.outputs}


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
