"""`ebm-encode serve` as a process, for tests."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

LISTENING = re.compile(r"listening on (http://\S+)")


@dataclass
class Served:
    """A server's process, its address and what it logs."""

    process: subprocess.Popen[str]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def wait_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            assert self.process.poll() is None, "".join(self.log)
            time.sleep(0.1)
        raise AssertionError("".join(self.log))

    def wait_idle(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while b"waiting_states 0.0" not in httpx2.get(f"{self.url}/metrics").content:
            assert time.monotonic() < end, "states wait"
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextlib.contextmanager
def served(
    model: str,
    *options: Any,
    ready: bool = True,
    env: dict[str, str] | None = None,
    files: tuple[int, int] | None = None,
) -> Iterator[Served]:
    """A server of a model on a free port; it is killed at the end of the block.

    `files` are the soft and the hard limit of files that it may have open.
    """
    command = [sys.executable, "-m", "ebm_encode", "serve", "--model-path", model]
    command += [] if "--port" in options else ["--port", "0"]
    process = subprocess.Popen(
        [*command, *map(str, options)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | (env or {}),
    )
    if files is not None:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, files)  # long before it reads them
    found = Served(process)
    told = threading.Event()

    def read() -> None:
        for line in process.stderr:
            found.log.append(line)
            if match := LISTENING.search(line):
                found.url = match[1]
                told.set()
        told.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert told.wait(60), "it does not listen"
        if ready:
            found.wait_ready()
        yield found
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
