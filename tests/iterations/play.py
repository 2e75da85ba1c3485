"""Plays iterations with small steps and a small server, and breaks them on purpose.

A `Play` is one folder: a configuration with three of the user's steps and a server, the commands
`ebm-encode iterate` that run in it, and what must be true at the end.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil

HERE = Path(__file__).parent
STEPS = ("llm-train", "export", "search")
_CONFIG = """
[iteration]
folder = "work/{{number}}"

[variables]
number = "1"

[server]
url = "http://127.0.0.1:{port}"
start = ["{{python}}", "server.py", "{port}", "{{model}}", "faults/server"]
model = "{{folder}}/model"
start-seconds = {start_seconds}
stop-seconds = 2
settle-seconds = 0.4

[steps.llm-train]
command = ["{{python}}", "step.py", "llm-train", "{{folder}}/adapter", "base", "data"]
inputs = ["base", "data"]
outputs = ["{{folder}}/adapter"]
timeout-seconds = {timeout}

[steps.export]
command = ["{{python}}", "step.py", "export", "{{folder}}/model", "base", "{{folder}}/adapter"]
inputs = ["base", "{{folder}}/adapter"]
outputs = ["{{folder}}/model"]
server = "stop"
timeout-seconds = {timeout}

[steps.search]
command = ["{{python}}", "step.py", "search", "{{folder}}/search", "{{folder}}/model"]
inputs = ["{{folder}}/model"]
outputs = ["{{folder}}/search"]
server = "run"
timeout-seconds = {timeout}
"""


_COMMAND = """
import sys
from ebm_encode.cli import main
{}
sys.exit(main())
"""


class Play:
    """One folder with a configuration.

    Args:
        folder: Where; it must be empty.
        start_seconds: The server's time to start.
        timeout: Each step's time.
    """

    def __init__(self, folder: Path, *, start_seconds: float = 15, timeout: float = 30) -> None:
        self.folder = folder
        self.number = 1
        self.broken = ""
        self.started: list[subprocess.Popen] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        for name in ("server.py", "step.py"):
            shutil.copy(HERE / name, folder / name)
        for name in ("base", "data", "faults"):
            (folder / name).mkdir()
        (folder / "base" / "weights").write_text("base")
        self.change_data(1)
        self.config = folder / "iteration.toml"
        self.config.write_text(
            _CONFIG.format(port=self.port, start_seconds=start_seconds, timeout=timeout)
        )

    def change_data(self, data: int) -> None:
        """Other trajectories."""
        (self.folder / "data" / "trajectories").write_text(f"data {data}")

    def next(self) -> None:
        """Another iteration, in another folder and with other trajectories."""
        self.number += 1
        self.change_data(self.number)
        (self.folder / "runs").unlink()

    @property
    def work(self) -> Path:
        """The folder of the iteration."""
        return self.folder / "work" / str(self.number)

    def edit(self, old: str, new: str) -> None:
        """Changes the configuration."""
        text = self.config.read_text()
        assert old in text, text
        self.config.write_text(text.replace(old, new))

    def fault(self, where: str, *kinds: str) -> None:
        """What the next runs of a step, or the next starts of the server, do."""
        (self.folder / "faults" / where).write_text("\n".join(kinds))

    def start(self, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
        """Starts the command, with what is broken in it on purpose."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _COMMAND.format(self.broken), "iterate", str(self.config)),
                *("--set", f"number={self.number}", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.started.append(process)
        return process

    def run(self, *options: str, seconds: float = 120) -> tuple[int, str]:
        """The exit code of the command, and what it prints."""
        with self.start(*options) as process:
            try:
                printed = process.communicate(timeout=seconds)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, printed

    def runs(self) -> list[str]:
        """The steps that were run, in order."""
        path = self.folder / "runs"
        return path.read_text().split() if path.exists() else []

    def served(self) -> tuple[str, str] | None:
        """The model that the server says it has, and what that model's folder held at its start."""
        try:
            found = httpx2.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=5).json()
        except httpx2.HTTPError:
            return None
        return found["data"][0]["id"], found["data"][0]["content"]

    def expected(self) -> dict[str, str]:
        """What the steps write in an iteration that nothing interrupts."""

        def digest(*contents: str) -> str:
            return hashlib.sha256("".join(contents).encode()).hexdigest()

        base = (self.folder / "base" / "weights").read_text()
        data = (self.folder / "data" / "trajectories").read_text()
        adapter = digest(base, data)
        model = digest(base, adapter)
        return {"adapter": adapter, "model": model, "search": digest(model)}

    def written(self) -> dict[str, str]:
        """What the steps have written."""
        return {
            name: (self.work / name / "weights").read_text()
            for name in ("adapter", "model", "search")
            if (self.work / name / "weights").exists()
        }

    @property
    def intent(self) -> Path:
        """The file that says that the server is not known to be back."""
        return self.folder / "server" / "intent.json"

    def processes(self, script: str = "step.py") -> list[psutil.Process]:
        """Processes of this folder that run a script."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                here = process.cwd() == str(self.folder)
                if here and script in process.cmdline() and process.status() != "zombie":
                    found.append(process)
        return found

    def wait_for(self, path: Path, seconds: float = 60) -> None:
        """Waits for a file."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, path
            time.sleep(0.01)

    def reboot(self) -> None:
        """Kills all processes of the folder: steps and server."""
        for script in ("step.py", "server.py"):
            for process in self.processes(script):
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    process.wait(10)

    def require_server(self) -> None:
        """The server runs with the newest model that is done, and nothing is left over."""
        done = (self.work / "records" / "export.json").exists()
        model = Path("work", str(self.number if done else self.number - 1), "model")
        content = (self.folder / model / "weights").read_text()
        served, left = self.served(), self.processes()
        servers = self.processes("server.py")
        assert served == (str(model), content), f"{served}, expected {model}, {content}"
        assert not self.intent.exists(), self.intent.read_text()
        assert left == [], left
        assert len(servers) == 1, servers

    def require_end(self) -> None:
        """The iteration is as if nothing had interrupted it."""
        assert self.written() == self.expected()
        self.require_server()
        summary = json.loads((self.work / "summary.json").read_text())
        assert summary["state"] == "done"

    def close(self) -> None:
        """Ends what may still run."""
        for process in self.started:
            process.kill()
            process.wait()
            process.stdout.close()
        self.reboot()


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Sends a signal and waits for the end."""
    process.send_signal(number)
    process.communicate(timeout=120)
