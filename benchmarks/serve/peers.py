"""Throughput of `ebm-encode serve` beside other servers of embeddings, on the same work.

16 clients of 8 states each ask `/v1/embeddings` (`/embeddings` of infinity) of three servers in
turns: ours; infinity, a server in the style of TEI (padded batches of sorted lengths, over
sentence-transformers); and vLLM on the CPU with mean pooling. All in float32, answers in base64 or
as lists, whichever the server has. Each answer is compared with plain transformers at batch size 1.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
import transformers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
CLIENTS, OF_CLIENT, REQUESTS = 16, 8, 6
_START_SECONDS = 300


def for_infinity(model: str, folder: Path) -> str:
    """A copy of a model whose tokenizer transformers 4 can load, and pad with."""
    copy = folder / Path(model).name
    shutil.copytree(model, copy)
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["pad_token"] = config["eos_token"]
    path.write_text(json.dumps(config))
    return str(copy)


@contextlib.contextmanager
def infinity(model: str, log: Path) -> Iterator[str]:
    """The address of an infinity server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(ROOT / ".envs/infinity/bin/infinity_emb"), "v2", "--model-id", model,
        *("--engine", "torch", "--device", "cpu", "--dtype", "float32", "--port", str(port)),
        *("--no-bettertransformer", "--no-compile", "--pooling-method", "mean"),
    ]  # fmt: skip
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }
    env.pop("PYTHONPATH", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.5)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def reference(model: str, texts: list[str]) -> Any:
    """Mean-pooled last hidden states at batch size 1, float32 [n, dim]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    run = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        return np.stack([run(one).last_hidden_state[0].mean(0).numpy() for one in ids])


def wrong(found: Any, expected: Any) -> int:
    """Embeddings whose direction is not the model's; servers may normalise lengths."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (found * expected).sum(1) / np.maximum(lengths, 1e-30)
    return int((cosine < 0.9999).sum())


def asker(url: str, model: str) -> Callable[[list[str]], Any]:
    """A function that asks a server for embeddings, float32 [n, dim]."""
    client = httpx2.Client(timeout=600)

    def ask(texts: list[str]) -> Any:
        body = {"model": model, "input": texts, "encoding_format": "base64"}
        answer = client.post(url, json=body)
        answer.raise_for_status()
        rows = [one["embedding"] for one in answer.json()["data"]]
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])

    return ask


def rate(ask: Callable[[list[str]], Any], texts: list[str], call: int) -> float:
    """States per second of all clients; no state was asked for before."""

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        for request in range(REQUESTS):
            some = random.choice(texts, OF_CLIENT).tolist()
            ask([f"{text}\n-- {call} {number} {request}" for text in some])

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client, number) for number in range(CLIENTS)]:
            done.result()
    return CLIENTS * REQUESTS * OF_CLIENT / (time.perf_counter() - start)


def measure(model: str, ours: str, texts: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """States per second of each server, by rounds, and how many of 64 embeddings are wrong."""
    from servers.real.launch import FLOAT32, MEAN, POOLING, real_server

    some = texts[:64]
    expected = reference(model, some)
    with (
        infinity(for_infinity(model, folder), folder / "infinity.log") as padded,
        real_server("vllm", model, folder / "vllm.log", *POOLING, *FLOAT32, *MEAN) as vllm,
    ):
        name = httpx2.get(f"{padded}/models").json()["data"][0]["id"]
        asks = {
            "ebm-encode serve": asker(f"{ours}/v1/embeddings", Path(model).name),
            "infinity": asker(f"{padded}/embeddings", name),
            "vLLM": asker(f"{vllm.url}/v1/embeddings", model),
        }
        bad = {who: wrong(ask(some), expected) for who, ask in asks.items()}
        for who, ask in asks.items():
            rate(ask, texts, hash(who) % 1000)
        rates: dict[str, list[float]] = {who: [] for who in asks}
        for number in range(rounds):
            for who, ask in asks.items():
                rates[who].append(rate(ask, texts, 10_000 + number))
    return {"rates": rates, "wrong of 64": bad}


def tell(found: dict[str, Any]) -> None:
    """Prints the table."""
    print(f"\n{CLIENTS} clients of {OF_CLIENT} states over /v1/embeddings, states/s (median)")
    ours = found["rates"]["ebm-encode serve"]
    for who, rates in found["rates"].items():
        ratio = statistics.median(a / b for a, b in zip(ours, rates, strict=True))
        wrongs = found["wrong of 64"][who]
        print(f"  {who:<18}{statistics.median(rates):>8.0f}   ours is {ratio:.2f} of it", end="")
        print(f"; wrong: {wrongs} of 64")
