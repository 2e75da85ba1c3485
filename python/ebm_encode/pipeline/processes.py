"""Child processes that can be found and ended again, also by a later run after a crash.

Each is the leader of a session and process group, and has a mark in its environment that was
written down before it was started. Nothing is ever looked up by name.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import psutil

from ebm_encode.errors import InputError, PipelineError
from ebm_encode.pipeline.records import read_json, write_json

_MARK = "EBM_ENCODE_ITERATE_MARK"
_GRACE = 10.0
"""Seconds that processes have to end by themselves."""
_TOLERANCE = 2.0
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

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What was written down; `None` if nothing was.

        Raises:
            InputError: If the file is damaged.
        """
        found = read_json(path)
        names = {"name", "mark", "pid", "created"}
        if found is None:
            return None
        try:
            return cls(**{name: found[name] for name in names})
        except KeyError as error:
            raise InputError(f"{path}: lacks {error}\nhint: remove it") from error

    def processes(self) -> list[psutil.Process]:
        """Its processes that live: itself, what it started, and what those started."""
        return [process for process in _mine() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            if self.pid and os.getsid(process.pid) == self.pid:
                # A later session may have the same id; then its leader is another process.
                leader = psutil.Process(self.pid) if psutil.pid_exists(self.pid) else None
                if leader is None or self._is(leader):
                    return bool(process.create_time() >= self.created - _TOLERANCE)
            return bool(process.environ().get(_MARK) == self.mark)
        return False

    def _is(self, leader: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return bool(abs(leader.create_time() - self.created) < _TOLERANCE)
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
        psutil.wait_procs(found, timeout=grace)
        left = self.processes()
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=_GRACE)
        alive = [p for p in self.processes() if p.status() != psutil.STATUS_ZOMBIE]
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
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


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

    Raises:
        OSError: If it cannot be written down.
        PipelineError: If it cannot be started.
    """
    started = Started(name, uuid.uuid4().hex)
    write_json(written, asdict(started) | dict(extra or {}))
    try:
        process = subprocess.Popen(  # noqa: S603  (the user's command)
            command,
            cwd=directory,
            env={**os.environ, **environment, _MARK: started.mark},
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
