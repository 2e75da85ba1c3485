"""Runs the steps of an iteration that are not done, and brings the server back in every way out."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from ebm_encode.errors import ArgumentError, EbmEncodeError, InputError, PipelineError
from ebm_encode.pipeline.config import Config, placed
from ebm_encode.pipeline.contents import MISSING, digest_path
from ebm_encode.pipeline.execution import RUNNING, Progress, StepRunner
from ebm_encode.pipeline.gpu import wait_for_memory
from ebm_encode.pipeline.intent import INTENT
from ebm_encode.pipeline.plan import Verdict, in_range, judge, plan
from ebm_encode.pipeline.records import Record, read_known, write_json
from ebm_encode.pipeline.right_model import HUB, ModelNotMadeError
from ebm_encode.pipeline.server import InferenceServer
from ebm_encode.pipeline.signals import LeftError, interruptible, patient
from ebm_encode.pipeline.steps import Step, feeds, steps_of
from ebm_encode.pipeline.summary import RunState, StepSummary, Summary
from ebm_encode.servers.guard.memory import free_memory_of_gpus

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
TOUCHED = "server.json"
NEWEST = "iteration.json"
_ENDING = "what an interrupted run left is being ended"
_INTERRUPTED = "interrupted\nhint: the same command resumes"


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


@dataclass(frozen=True)
class _Touched:
    """Which server an iteration touched: the folder of what is known of it, and its address."""

    folder: str
    url: str


@dataclass(frozen=True)
class _Newest:
    """The folder of the iteration that ran a step last beside a server."""

    folder: str


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
        self._runner = StepRunner(folder)
        self.server: InferenceServer | None = None
        if config.server is not None:
            self.server = InferenceServer(
                config.server,
                directory,
                model_is_made=self._is_made,
                made_at=self._made_at,
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
        with self._alone(), patient(last=True):
            with patient(_ENDING, firm=True, last=True):
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
        with self._alone(), interruptible():
            began, run, server = time.monotonic(), _Run(), ""
            try:
                server = self._run_whole(run, begin, end, progress)
            except KeyboardInterrupt:
                run.end("interrupted", "interrupted")
                if self.server is not None and self.server.touched:
                    server = "is not back"
                    run.end("interrupted", "the server is not back\nhint: run with --recover")
            rows, seconds = self._rows(run, begin, end), round(time.monotonic() - began, 3)
            summary = Summary(run.state, rows, server, run.error, seconds)
            try:
                write_json(self.folder / SUMMARY, summary.to_json())
            except OSError as error:
                log.warning("%s: cannot be written (%s)", self.folder / SUMMARY, error)
            return summary

    def _run_whole(self, run: _Run, begin: int, end: int, progress: Progress | None) -> str:
        """Runs the steps between two states of a server that answers; what was done about it.

        Raises:
            LeftError: If the server is left to the next run.
        """
        try:
            with patient(_ENDING, firm=True):
                self._end_leftovers()
            self._recover_first()
        except (EbmEncodeError, OSError) as failure:
            run.end("failed", str(failure))
            return "is not back"
        except LeftError:
            raise
        except KeyboardInterrupt:
            run.end("interrupted", _INTERRUPTED)
        else:
            self._run_steps(run, begin, end, progress)
        return self._server_after(run, whole=(begin, end) == (0, len(self.steps)))

    def _run_steps(self, run: _Run, begin: int, end: int, progress: Progress | None) -> None:
        try:
            run.verdicts = self.plan()
            self._require_done(run.verdicts, begin, end)
            for verdict in run.verdicts[begin:end]:
                self._take(run, verdict, progress)
        except ArgumentError:
            self._bring_back()
            raise
        except (EbmEncodeError, OSError) as failure:
            run.end("failed", str(failure))
        except LeftError:
            raise
        except KeyboardInterrupt:
            run.end("interrupted", _INTERRUPTED)
        except BaseException:
            self._bring_back()
            raise

    def _server_after(self, run: _Run, *, whole: bool) -> str:
        """Brings the server back; what was done about it, to be read."""
        try:
            told = self._bring_back()
        except (EbmEncodeError, OSError) as failure:
            run.end("failed", str(failure))
            return "is not back"
        model = None if self._config.server is None else self._config.server.model
        missing = model is not None and not model.startswith(HUB) and not self._is_made(model)
        if run.state == "done" and whole and missing:
            run.end(
                "failed",
                f"[server] model {model} is not there, and all steps are done\nhint: which step"
                " makes it? its `outputs` tell",
            )
        return told

    def _recover_first(self) -> None:
        """Brings a server back that an interrupted run left.

        Raises:
            ServerError: If it does not come back; nothing runs then.
        """
        if self.server is None or not self.server.touched:
            return
        with patient():
            try:
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
            self._note_server(self.server)
            self.server.free()
        if self.server is not None and step.server == "run":
            with patient():
                log.info("%s: the server %s", step.name, self.server.restore())
            self.server.require_up(step.name)
        if step.gpu_memory:
            wait_for_memory(step.gpu_memory, self._config.gpu.wait_seconds, free=self._free_memory)
        self._note_iteration()
        log.info("%s: runs (%s)", step.name, "; ".join(verdict.reasons[:2]))
        run.states[step.name] = self._runner.run(verdict, progress)
        run.current = None

    def _is_made(self, model: str) -> bool:
        """Whether a model is there, as the step left it that makes it; or is a hub id."""
        path = placed(self._directory, model)
        makers = self._makers(path)
        return path.exists() and all(self._wrote(step, output) for step, output in makers)

    def _made_at(self, model: str) -> float | None:
        """When a step here made a model; `None` if none did."""
        steps = {step.name for step, _ in self._makers(placed(self._directory, model))}
        records = [Record.read(self.folder, name) for name in sorted(steps)]
        return max((record.at for record in records if record is not None), default=None)

    def _makers(self, path: Path) -> list[tuple[Step, Path]]:
        """Steps that write a path or something in it, and their outputs; links are followed."""
        real = path.resolve()
        return [
            (step, output)
            for step in self.steps
            for output in step.outputs
            if (there := output.resolve()) == real or there in real.parents or real in there.parents
        ]

    def _wrote(self, step: Step, output: Path) -> bool:
        record = Record.read(self.folder, step.name)
        return record is not None and record.outputs.get(str(output)) == digest_path(output)

    def _note_server(self, server: InferenceServer) -> None:
        """Writes down which server this iteration touches, for a later configuration without it."""
        try:
            write_json(self.folder / TOUCHED, {"folder": str(server.folder), "url": server.url})
        except OSError as error:
            raise PipelineError(f"{self.folder}: cannot be written ({error})") from error

    def _note_iteration(self) -> None:
        """Writes down beside the server whose steps run, for a later run of another iteration."""
        if self.server is None:
            return
        path = self.server.folder / NEWEST
        try:
            write_json(path, {"folder": str(self.folder)})
        except OSError as error:
            raise PipelineError(f"{path}: cannot be written ({error})") from error

    def _other_folder(self) -> Path | None:
        """The folder of another iteration, a step of which may run still beside the server."""
        newest = None if self.server is None else read_known(self.server.folder / NEWEST, _Newest)
        if newest is None or not Path(newest.folder, RUNNING).exists():
            return None
        return None if Path(newest.folder) == self.folder else Path(newest.folder)

    def _end_leftovers(self) -> None:
        """Ends steps that interrupted runs left behind, here and beside the same server."""
        self._runner.end_leftovers()
        if (other := self._other_folder()) is not None:
            StepRunner(other).end_leftovers()

    def _require_known_server(self) -> None:
        """Refuses a configuration that lacks a server that an interrupted run touched."""
        touched = read_known(self.folder / TOUCHED, _Touched)
        if touched is None or not Path(touched.folder, INTENT).exists():
            return
        server = self.server
        if server is None or (str(server.folder), server.url) != (touched.folder, touched.url):
            raise ArgumentError(
                f"{touched.folder}: an interrupted run left the server there ({touched.url}), and"
                " the configuration has no such [server]\nhint: put that table back and run with"
                " --recover"
            )

    def _bring_back(self) -> str:
        if self.server is None:
            return ""
        with patient(last=True):
            return self.server.restore()

    def _require_done(self, verdicts: Sequence[Verdict], begin: int, end: int) -> None:
        """Refuses a range that needs a step before it that is not done."""
        needed = [verdict.step for verdict in verdicts[begin:end]]
        undone: list[Verdict] = []
        for verdict in reversed(verdicts[:begin]):
            if any(feeds(verdict.step, step) for step in needed):
                needed.append(verdict.step)
                undone += [] if verdict.done else [verdict]
        if undone:
            first = undone[-1]
            raise ArgumentError(
                f"step {first.step.name} comes before, and is not done: {first.reasons[0]}\nhint:"
                " begin with it"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        folders = [self.folder, *([] if self.server is None else [self.server.folder])]
        with ExitStack() as locks:
            for folder in dict.fromkeys(folders):
                locks.enter_context(_locked(folder))
            if (other := self._other_folder()) is not None:
                locks.enter_context(_locked(other))
            self._require_known_server()
            if self.server is not None:
                self.server.require_own_folder()
            yield

    def _rows(self, run: _Run, begin: int, end: int) -> list[StepSummary]:
        names = [step.name for step in self.steps[begin:end]]
        return [run.states.get(name, StepSummary(name, "not reached")) for name in names]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise ArgumentError(
            f"{folder}: another `ebm-encode iterate` is at work there\nhint: wait for it, or use"
            " another folder ([iteration] `folder`, [server] `folder`)"
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error})") from error
    try:
        yield
    finally:
        lock.release()
