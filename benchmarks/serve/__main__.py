"""Cost of `ebm-encode serve` beside the same queue in a process, and beside FastAPI with lists.

    python benchmarks/serve [--rounds 5] [--calls 100] [--peers]

Requests of 32 states over loopback with an encoder that writes a constant embedding of 4,096
values, so that only the overhead is measured: Arrow, JSON, and the server that projects usually
write (`benchmarks/bridge/server.py`). Then 16 clients of 8 states each with a small random model.
All in turns; medians of rounds. With --peers also beside other servers: see `peers.py`; they need
`make .envs/infinity/installed .envs/vllm/installed`.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
import tiny_model

HERE = Path(__file__).parent
SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 64}  # fmt: skip
STATES, CLIENTS, OF_CLIENT, REQUESTS = 32, 16, 8, 12


@contextlib.contextmanager
def served(model, *, free):
    """The address of `ebm-encode serve`, with nothing kept in memory."""
    command = [sys.executable, HERE / "free_server.py", *(["--free"] if free else [])]
    command += ["--model-path", model, "--port", 0, "--memory-mib", 0]
    process = subprocess.Popen([str(p) for p in command], stderr=subprocess.PIPE, text=True)
    url = None
    for line in process.stderr:
        if match := re.search(r"listening on (\S+)", line):
            url = match[1]
        if ": engine" in line or "ready" in line:
            break
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    try:
        yield url
    finally:
        process.terminate()
        process.wait()
        reader.join()


@contextlib.contextmanager
def listed(model):
    """The address of the server that projects usually write."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, HERE.parent / "bridge/server.py", "--free", "--port", port]
    command += ["--model-path", model]
    with subprocess.Popen([str(part) for part in command]) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(httpx2.HTTPError):
                httpx2.get(url)
                break
            time.sleep(0.1)
        try:
            yield url
        finally:
            process.terminate()


def fresh(texts, call):
    """States that were not asked for before."""
    return [f"{text}\n-- {call}" for text in texts]


def milliseconds(ask, calls, texts):
    """The median of some calls; each has new states."""
    times = []
    for call in range(calls):
        states = fresh(texts, f"{ask.__name__} {call} {time.time_ns()}")
        start = time.perf_counter()
        ask(states)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def overhead(model, texts, rounds, calls):
    """One request after the other, in turns."""
    from near_free import make_free

    from ebm_encode import Encoder, RemoteEncoder
    from ebm_encode._core import CachedEncoder

    make_free()
    here = CachedEncoder(Encoder.load(model), memory_bytes=0)
    with served(model, free=True) as url, listed(model) as other, httpx2.Client() as client:
        remote = RemoteEncoder(url)

        def in_process(states):
            here.encode_reported(states)

        def arrow(states):
            assert remote.encode(states).shape == (STATES, 4096)

        def as_json(states):
            items = client.post(f"{url}/encode", json={"texts": states}).json()["items"]
            assert len(items) == STATES

        def as_lists(states):
            rows = client.post(f"{other}/encode", json={"states": states}).json()["embeddings"]
            assert len(rows) == STATES

        asks = [in_process, arrow, as_json, as_lists]
        for ask in asks:
            milliseconds(ask, 5, texts)
        found = [
            {ask.__name__: milliseconds(ask, calls, texts) for ask in asks} for _ in range(rounds)
        ]
        remote.close()
    here.finish({})
    return found


def together(model, texts, rounds):
    """States per second of 16 clients, over loopback and in the process."""
    from ebm_encode import Encoder, RemoteEncoder
    from ebm_encode._core import CachedEncoder

    here = CachedEncoder(Encoder.load(model), memory_bytes=0)
    latencies = []

    def rate(ask):
        def client(number):
            for request in range(REQUESTS):
                chosen = np.random.default_rng(number).choice(texts, OF_CLIENT).tolist()
                start = time.perf_counter()
                ask(fresh(chosen, f"{number} {request} {time.time_ns()}"))
                latencies.append(time.perf_counter() - start)

        start = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(client, number) for number in range(CLIENTS)]:
                done.result()
        return CLIENTS * REQUESTS * OF_CLIENT / (time.perf_counter() - start)

    with served(model, free=False) as url, RemoteEncoder(url) as remote:
        for ask in (here.encode_reported, remote.encode):
            rate(ask)
        found = []
        for _ in range(rounds):
            local = rate(here.encode_reported)
            latencies.clear()
            found.append({"in_process": local, "served": rate(remote.encode)})
            found[-1]["p99_ms"] = float(np.percentile(latencies, 99) * 1e3)
    here.finish({})
    return found


def run_apart(what, model, arguments):
    """A measurement in a separate process: one of them replaces the encoder's methods."""
    command = [sys.executable, HERE, "--part", what, "--model", model]
    command += ["--rounds", arguments.rounds, "--calls", arguments.calls]
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--part", choices=["overhead", "together", "peers"])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    texts = sorted(tiny_model.sample_states())
    if arguments.part == "overhead":
        short = [text[:200] for text in texts[:STATES]]
        print(json.dumps(overhead(arguments.model, short, arguments.rounds, arguments.calls)))
        return
    if arguments.part == "together":
        print(json.dumps(together(arguments.model, texts, arguments.rounds)))
        return
    if arguments.part == "peers":
        import peers

        with served(arguments.model, free=False) as url, tempfile.TemporaryDirectory() as logs:
            rounds = arguments.rounds
            print(json.dumps(peers.measure(arguments.model, url, texts, rounds, Path(logs))))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_model.train_tokenizer(texts)
        tiny = tiny_model.make_model(Path(folder, "tiny"), tokenizer)
        small = tiny_model.make_model(Path(folder, "small"), tokenizer, **SMALL)
        rounds = run_apart("overhead", tiny, arguments)
        print(f"\n{STATES} states of 4,096 values, ms (median of {len(rounds)} rounds)")
        for name in rounds[0]:
            print(f"  {name:<12}{statistics.median(r[name] for r in rounds):>8.2f}")
        adds = statistics.median(r["arrow"] - r["in_process"] for r in rounds)
        ratio = statistics.median(r["as_json"] / r["as_lists"] for r in rounds)
        print(f"  Arrow adds {adds:.2f} ms; JSON takes {ratio:.2f} of FastAPI with lists")
        rounds = run_apart("together", small, arguments)
        rates = {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}
        ratio = statistics.median(r["served"] / r["in_process"] for r in rounds)
        print(f"\n{CLIENTS} clients of {OF_CLIENT} states, a model 384 wide, 6 layers")
        print(f"  served {rates['served']:.0f} states/s, p99 {rates['p99_ms']:.0f} ms;", end="")
        print(f" in process {rates['in_process']:.0f}; {ratio:.2f} of it")
        if arguments.peers:
            import peers

            peers.tell(run_apart("peers", small, arguments))


if __name__ == "__main__":
    main()
