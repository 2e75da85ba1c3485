"""Overhead of a request from Rust to the encoder, beside direct Python calls and HTTP with JSON.

    python benchmarks/bridge [--rounds 3] [--calls 200] [--requests 8]

Requests of 1, 8, 32 and 64 states through (a) the bridge, (b) the Python encoder called from
Python, (c) a FastAPI server on this machine with JSON both ways. First with an encoder that writes
a constant embedding of 4,096 values, so that only the overhead is measured; then with two small
random models, and with 16 concurrent callers of 8 states each. The three run in turns, round after
round; medians over the rounds are printed.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
import tiny_model

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SIZES = [1, 8, 32, 64]
CALLERS = 16
SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6}  # fmt: skip


def output(command):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def one_round(model, states, *, free, calls, requests):
    common = ["--states", states, "--sizes", *SIZES]
    callers = ["--callers", CALLERS, "--requests", requests]
    bridge = [ROOT / "target/release/examples/bridge_road", "--model-path", model, *common]
    bridge += ["--calls", calls, *callers]
    result = output([*bridge, "--before", HERE / "free.py"] if free else bridge)
    only_free = ["--free"] if free else []
    direct = [sys.executable, HERE / "direct.py", "--model-path", model, *common, *only_free]
    result |= output([*direct, "--calls", calls])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = [sys.executable, HERE / "server.py", "--model-path", model, "--port", port, *only_free]
    with subprocess.Popen([str(part) for part in server]) as process:
        client = [sys.executable, HERE / "client.py", "--port", port, *common, *callers]
        try:
            answered = output([*client, "--calls", max(calls // 5, 10)])
        finally:
            process.terminate()
    return result | {"http_us": answered["http_us"], "http_together": answered["together"]}


def show(name, rounds):
    print(f"\n{name}: median of {len(rounds)} rounds, microseconds per request")
    header = f"{'states':>7} {'Python':>9} {'bridge':>9} {'queue':>9} {'HTTP':>10}"
    print(f"{header} {'bridge adds':>12} {'queue adds':>11} {'HTTP adds':>10} {'HTTP/bridge':>12}")
    for size in map(str, SIZES):

        def median(kind, size=size):
            return statistics.median(r[kind][size] for r in rounds)

        def adds(kind, size=size):
            return statistics.median(r[kind][size] - r["direct_us"][size] for r in rounds)

        ratio = statistics.median(r["http_us"][size] / r["lone_us"][size] for r in rounds)
        values = [median("direct_us"), median("lone_us"), median("queue_us"), median("http_us")]
        print(
            f"{size:>7} {values[0]:>9.0f} {values[1]:>9.0f} {values[2]:>9.0f} {values[3]:>10.0f}"
            f" {adds('lone_us'):>12.0f} {adds('queue_us'):>11.0f} {adds('http_us'):>10.0f}"
            f" {ratio:>12.1f}"
        )


def show_callers(rounds):
    rate = statistics.median(r["together"] for r in rounds)
    print(f"{CALLERS} concurrent callers, 8 states each: {rate:.0f} states/s")
    for name, kind in [("HTTP", "http_together"), ("one request after the other", "one_at_a_time")]:
        ratio = statistics.median(r["together"] / r[kind] for r in rounds)
        rate = statistics.median(r[kind] for r in rounds)
        print(f"  {ratio:.2f} times {name} ({rate:.0f} states/s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200, help="per size, without a model")
    parser.add_argument("--requests", type=int, default=8, help="requests of each caller")
    arguments = parser.parse_args()
    build = ["cargo", "build", "--release", "--locked", "--package", "ebm-embed"]
    environment = os.environ | {"PYO3_PYTHON": sys.executable}
    subprocess.run([*build, "--examples", "--quiet"], check=True, cwd=ROOT, env=environment)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    texts = sorted(tiny_model.sample_states())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_model.train_tokenizer(texts)
        tiny = tiny_model.make_model(Path(folder, "tiny"), tokenizer)
        small = tiny_model.make_model(Path(folder, "small"), tokenizer, **SMALL)
        states = Path(folder, "states.json")
        states.write_text(json.dumps(texts))
        rounds = [
            one_round(tiny, states, free=True, calls=arguments.calls, requests=0)
            for _ in range(arguments.rounds)
        ]
        show("overhead only, a constant embedding of 4,096 values", rounds)
        for name, model in [("64 wide, 3 layers", tiny), ("384 wide, 6 layers", small)]:
            rounds = [
                one_round(model, states, free=False, calls=20, requests=arguments.requests)
                for _ in range(arguments.rounds)
            ]
            show(f"a model {name}", rounds)
            show_callers(rounds)


if __name__ == "__main__":
    main()
