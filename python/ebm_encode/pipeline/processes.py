"""Child processes that can be found and ended again, also by a later run after a crash.

Each is the leader of a session and process group, and has a mark in its environment that was
written down before it was started. Nothing is ever looked up by name.
"""

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil

from ebm_encode.errors import PipelineError
from ebm_encode.pipeline.records import read_known, write_json

_MARK = "EBM_ENCODE_ITERATE_MARK"
_MARK_LENGTH = 32
_GRACE = 10.0
"""Seconds that processes have to end by themselves."""
_POLL_SECONDS = 0.02
_TOLERANCE = 1.0
"""Seconds by which the start of a process may be told differently later."""


@dataclass(frozen=True)
class Started:
    """What is written down of a process.

    Attributes:
        name: What it is, for messages.
        mark: In its environment.
        pid: Its id, also of its session and group; 0 until it is started.
        created: When it was started, seconds since 1970.
    """

    name: str
    mark: str
    pid: int = 0
    created: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what would be found in processes of others.

        Raises:
            ValueError: If it is no mark, or no process.
        """
        if len(self.mark) != _MARK_LENGTH or self.pid < 0:
            raise ValueError("no mark, or no process")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What was written down; `None` if nothing was, or it is damaged.

        Raises:
            InputError: If the file cannot be read.
        """
        return read_known(path, cls)

    def processes(self) -> list[psutil.Process]:
        """Its processes that live: itself, what it started, and what those started."""
        leads = self._leads()
        return [process for process in _mine() if self._owns(process, leads=leads)]

    def _leads(self) -> bool:
        """Whether the process that was started lives; another one may have its id by now."""
        with suppress(psutil.Error):
            leader = psutil.Process(self.pid) if self.pid else None
            return leader is not None and abs(leader.create_time() - self.created) < _TOLERANCE
        return False

    def _owns(self, process: psutil.Process, *, leads: bool) -> bool:
        with suppress(psutil.Error, ProcessLookupError):
            if leads and os.getsid(process.pid) == self.pid:
                return True
            return self.mark in process.environ().get(_MARK, "").split(":")
        return False

    def end(self, grace: float = _GRACE) -> int:
        """Ends its processes: asks them, and after some time kills them.

        Returns:
            How many there were.

        Raises:
            PipelineError: If one does not end.
        """
        found = self.processes()
        if not found:
            return 0
        _signal(found, signal.SIGTERM)
        _wait_until_gone(found, grace)
        left = self.processes()
        _signal(left, signal.SIGKILL)
        _wait_until_gone(left, _GRACE)
        alive = self.processes()
        if alive:
            pids = ", ".join(str(process.pid) for process in alive)
            raise PipelineError(
                f"{self.name}: process {pids} does not end, even when killed\nhint: it may wait for"
                " a disk or a GPU; end it before the next run"
            )
        return len(found)


def _mine() -> Iterator[psutil.Process]:
    """Processes that may be children of a run: those of this user, but this one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and _lives(process):
                yield process


def _wait_until_gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _lives(process: psutil.Process) -> bool:
    """Whether it has not ended.

    One that has stays a zombie until its parent takes its exit code, which the first process of a
    container may never do. One with threads left is a zombie too, and still holds its memory.
    """
    with suppress(psutil.Error):
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return process.is_running() and (not zombie or process.num_threads() > 1)
    return False


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    groups = set()
    for process in processes:
        with suppress(ProcessLookupError, psutil.Error):
            group = os.getpgid(process.pid)
            if group == os.getpgrp():  # it joined ours; the others must not be hit
                process.send_signal(number)
            else:
                groups.add(group)
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended. It is not waited for: its session is known by it until then."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, flags) is not None


def run_briefly(
    command: Sequence[str],
    *,
    seconds: float,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int | None, str]:
    """Runs a command of the user's in a session of its own, which ends with it in time or is ended.

    Args:
        command: What runs.
        seconds: Its time.
        directory: Working directory.
        environment: Environment variables besides those of this process.

    Returns:
        Its exit code, `None` if it took too long; and what it printed.

    Raises:
        OSError: If it cannot be started.
    """
    # To a file: what it leaves in the background may keep a pipe open.
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(  # noqa: S603  (the user's command)
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except BaseException as error:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, ""
            raise
        printed.seek(0)
        return code, printed.read().decode(errors="replace").strip()


def detach(process: subprocess.Popen[bytes]) -> None:
    """Leaves a process that outlives this one: nobody waits for it."""
    if process.poll() is None:
        process.returncode = 0


def start(
    command: Sequence[str],
    *,
    name: str,
    written: Path,
    extra: Mapping[str, Any] | None = None,
    directory: Path,
    environment: Mapping[str, str],
    output: IO[bytes] | int,
    errors: IO[bytes] | int,
    outlives: bool = False,
) -> tuple[Started, subprocess.Popen[bytes]]:
    """Starts a process in a session of its own; where it is found again is written down first.

    Args:
        command: What runs.
        name: What it is, for messages.
        written: File where it is written down.
        extra: What else is written there.
        directory: Working directory.
        environment: Environment variables besides those of this process.
        output: Its standard output.
        errors: Its standard error.
        outlives: Whether it goes on where this process is itself a step that is ended.

    Raises:
        OSError: If it cannot be written down.
        PipelineError: If it cannot be started.
    """
    started = Started(name, uuid.uuid4().hex)
    above = "" if outlives else os.environ.get(_MARK, "")
    marks = f"{above}:{started.mark}"
    write_json(written, asdict(started) | dict(extra or {}))
    try:
        process = subprocess.Popen(  # noqa: S603  (the user's command)
            command,
            cwd=directory,
            env={**os.environ, **environment, _MARK: marks},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise PipelineError(f"{name}: cannot be started: {error}") from error
    created = time.time()
    with suppress(psutil.Error):
        created = psutil.Process(process.pid).create_time()
    started = Started(name, started.mark, process.pid, created)
    try:
        write_json(written, asdict(started) | dict(extra or {}))
    except BaseException:
        started.end()
        process.wait()
        raise
    return started, process


def run_to_end(
    command: Sequence[str],
    *,
    name: str,
    written: Path,
    directory: Path,
    seconds: float,
    output: IO[bytes],
) -> int | None:
    """Runs a process to its end, or ends it after some time.

    Args:
        command: What runs.
        name: What it is, for messages.
        written: File where it is written down; it stays.
        directory: Working directory.
        seconds: Its time.
        output: What it prints.

    Returns:
        Its exit code; `None` if it took too long.

    Raises:
        OSError: If it cannot be written down.
        PipelineError: If it cannot be started or ended.
    """
    try:
        started, process = start(
            command,
            name=name,
            written=written,
            directory=directory,
            environment={},
            output=output,
            errors=output,
        )
    except PipelineError:
        written.unlink(missing_ok=True)
        raise
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        started.end()
        process.wait()
