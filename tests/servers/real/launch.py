"""Starts real inference servers on a CPU, each from a separate environment in `.envs`."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ROOT / "tests/servers/environments"
STARTUP_SECONDS = 600  # minutes on a busy machine
SGLANG = [
    *["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"],
    *["--grammar-backend", "none", "--disable-cuda-graph", "--enable-return-hidden-states"],
    *["--max-total-tokens", "16384", "--max-running-requests", "64", "--sleep-on-idle"],
]
FLOAT32 = ["--dtype", "float32"]
POOLING = ["--runner", "pooling"]
MEAN = ["--pooler-config", '{"pooling_type":"MEAN","use_activation":false}']
MODULES = {
    "sglang": ["sglang.launch_server", "--model-path"],
    "sglang-old": ["sglang.launch_server", "--model-path"],
    "vllm": ["vllm.entrypoints.openai.api_server", "--model"],
}
VARIABLES = {
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1"},
    # Without the second, 0.4.9 wants a kernel for an all-reduce that one process never does.
    "sglang-old": {"SGLANG_USE_CPU_ENGINE": "1", "USE_VLLM_CUSTOM_ALLREDUCE": "1"},
    "vllm": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    },
}


@dataclass
class RealServer:
    """A server that answers; `alive` tells whether its first process still runs."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def alive(self) -> bool:
        return self.process.poll() is None

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(self.url + path, timeout=60)

    def post(self, path: str, body: object) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=300)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _environment(name: str, more: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    kernels = ENVIRONMENTS / f"{name}-kernels"
    if kernels.is_dir():
        kept["PYTHONPATH"] = str(kernels)
    return kept | {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"} | VARIABLES[name] | more


def _wait(server: RealServer) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        if not server.alive():
            break
        with contextlib.suppress(httpx2.HTTPError):
            if server.get("/health").status_code == 200:
                return
        time.sleep(1)
    tail = "\n".join(server.log.read_text(errors="replace").splitlines()[-30:])
    message = f"{server.process.args} did not start:\n{tail}"
    raise RuntimeError(message)


def _end(process: subprocess.Popen[bytes]) -> None:
    # The group, since its workers outlive a killed parent.
    for sent in [signal.SIGTERM, signal.SIGKILL]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


@contextlib.contextmanager
def real_server(
    name: str, model: str, log: Path, *options: str, **variables: str
) -> Iterator[RealServer]:
    """A real server of `sglang`, `sglang-old` or `vllm` on a free port, once it is healthy."""
    python = ROOT / ".envs" / name / "bin/python"
    if not python.exists():
        message = f"{python} is missing\nhint: run make test-{name}, which makes it"
        raise FileNotFoundError(message)
    port = _free_port()
    command = [str(python), "-m", *MODULES[name], model, "--host", "127.0.0.1"]
    command += ["--port", str(port), *options]
    with log.open("wb") as out:
        process = subprocess.Popen(  # in a session of its own, so that all of it can be ended
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(name, variables),
            start_new_session=True,
        )
    try:
        server = RealServer(f"http://127.0.0.1:{port}", log, process)
        _wait(server)
        yield server
    finally:
        _end(process)
