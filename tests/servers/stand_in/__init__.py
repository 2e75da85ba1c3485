"""A stand-in for other people's inference servers: SGLang 0.5.23, SGLang 0.4.9 and vLLM 0.32.

One process plays each of them in turn, with a small model run by plain transformers, one text at a
time, and shows a defect by switch. A test uses it through the fixture of `tests/conftest.py`::

    def test_zeros_are_refused(stand_in, llama):
        stand_in.play("sglang", llama, defect="zeros", after=4)
        ...  # a client of stand_in.url: right replies to 4 requests, then zeros
        assert not any(r["path"] == "/flush_cache" for r in stand_in.requests())

`play` begins again: cache empty, requests forgotten, a server that had ended is there again.
Settings are those of `replies.Settings`; names of defects are in `sglang_defects.EACH` and `WHOLE`,
`vllm.EACH` and `WHOLE`, and `replies.OF_CONNECTIONS`.
Without a switch it does what the real ones do: SGLang's prefix cache cuts prompts that it has seen,
and 0.4.9 slices batches wrongly.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

TESTS = Path(__file__).parents[2]


@dataclass
class StandIn:
    """The address of the process, its control, and a client for plain requests to it."""

    url: str
    http: httpx2.Client

    def play(self, kind: str, model: str, **settings: Any) -> str:
        """Becomes a server of a kind, with the given `replies.Settings`; gives its address."""
        body = {"kind": kind, "model": str(model)} | settings
        reply = self.http.post(f"{self.url}/_stand_in", json=body)
        if reply.status_code != 200:
            raise ValueError(reply.text)
        return self.url

    def status(self) -> dict[str, Any]:
        """`requests`, `dead`, `free_memory` in bytes, and `most` requests at the same time."""
        return self.http.get(f"{self.url}/_stand_in").json()

    def requests(self) -> list[dict[str, Any]]:
        """The requests since `play`, in order: method, path, body."""
        return self.status()["requests"]


@contextlib.contextmanager
def started() -> Iterator[StandIn]:
    """The stand-in's process; it ends with the block, and with this process."""
    # Paths of the module alone: a test may have changed the directory.
    environment = os.environ | {"PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1"}
    # One client, since each makes a TLS context, but no connection outlives its request.
    limits = httpx2.Limits(max_keepalive_connections=0)
    with (
        httpx2.Client(timeout=120, limits=limits) as http,
        subprocess.Popen(
            [sys.executable, "-m", "servers.stand_in"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            yield StandIn(process.stdout.readline().strip(), http)
        finally:
            process.stdin.close()
            process.terminate()
            process.wait(30)
