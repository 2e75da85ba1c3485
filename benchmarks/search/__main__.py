"""Best-first search in a replay: expansions per second, overhead, and one encoder for 64 theorems.

    python benchmarks/search [--trajectories FILE] [--runs 5]

Replays with one thread, going on after the proofs, so that all recorded states are expanded:
without scores, and with the default head (512-256-64-1, seeded random weights) on cached states.
Then the states of 64 theorems at a time through one small model, beside the same states through
the encoder by itself: all in one call, and in calls like the search's. Medians of the runs, which
are taken by turns.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "samples"), str(ROOT / "tests")]
PROVER = ROOT / "target" / "release" / "ebm-prover"
ALL = ("--max-expansions", "1000000000", "--record-after-proof", "1000000000")
DIM = 512
THEOREMS = 64


def search(*arguments):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, "search", *arguments, *ALL, "--json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def texts_of(path):
    table = pq.read_table(path, columns=["state_pp"])
    return [*dict.fromkeys(text for text in table["state_pp"].to_pylist() if text)]


def scored_inputs(folder, states):
    """A head and a cache of random embeddings of its identity."""
    from support import write_plain_cache

    place = ROOT / "benchmarks" / "head" / "__main__.py"
    spec = importlib.util.spec_from_file_location("head_benchmark", place)
    head_benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(head_benchmark)
    head = folder / "head.safetensors"
    head_benchmark.write(head, [DIM, 256, 64, 1], 1)
    rows = np.random.default_rng(0).standard_normal((len(states), DIM)).astype(np.float32)
    cache = write_plain_cache(folder / "c.parquet", states, rows, **head_benchmark.IDENTITY)
    return head, cache


def interleaved(path):
    """The distinct states as 64 searches ask for them: some children of each theorem in a call."""
    table = pq.read_table(path, columns=["theorem_name", "state_pp", "parent_state_id"])
    queues, seen = {}, set()
    for row in table.to_pylist():
        if row["state_pp"] and row["state_pp"] not in seen:
            seen.add(row["state_pp"])
            children = queues.setdefault(row["theorem_name"], {})
            children.setdefault(row["parent_state_id"], []).append(row["state_pp"])
    waiting = [[*children.values()] for children in queues.values()]
    for number in range(max(len(requests) for requests in waiting)):
        asking = [requests[number] for requests in waiting if number < len(requests)]
        yield [state for request in asking for state in request]


def one_encoder(folder, trajectories):
    """States per second of 64 searches at once over one model, and of the encoder by itself."""
    from ebm_encode import Encoder
    from head_files import head_of, perceptrons, save_head
    from tiny_model import make_model, sample_states, train_tokenizer

    model = folder / "model"
    make_model(model, train_tokenizer(sample_states()))
    encoder = Encoder.load(model)
    head, dims = folder / "small.safetensors", [encoder.dim, 8, 1]
    save_head(head, perceptrons(dims, 1), head_of(encoder.identity, dims, 1))
    first = folder / "first.parquet"
    table = pq.read_table(trajectories)
    names = [*dict.fromkeys(table["theorem_name"].to_pylist())][:THEOREMS]
    pq.write_table(
        table.filter([name in set(names) for name in table["theorem_name"].to_pylist()]), first
    )
    states, calls = texts_of(first), [*interleaved(first)]
    arguments = (
        "--trajectories",
        first,
        "--head",
        head,
        "--model-path",
        model,
        "--ranking",
        "head",
    )
    rates = {"search": [], "all at once": [], "calls like the search's": []}
    for _ in range(3):
        report = search(*arguments, "--threads", THEOREMS)
        scored = sum(one["states"] for one in report["theorems"]) - len(report["theorems"])
        rates["search"].append(scored / report["seconds"])
        for name, batches in (("all at once", [states]), ("calls like the search's", calls)):
            start = time.perf_counter()
            for batch in batches:
                encoder.encode(batch)
            rates[name].append(len(states) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", default=str(ROOT / "searches" / "lean_core.parquet"))
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        states = texts_of(arguments.trajectories)
        head, cache = scored_inputs(folder, states)
        replay = ("--trajectories", arguments.trajectories, "--threads", "1")
        kinds = {
            "policy": (),
            "head 512-256-64-1, cached": ("--head", head, "--cache", cache, "--ranking", "head"),
        }
        rates = {kind: [] for kind in kinds}
        own = {kind: [] for kind in kinds}
        for _ in range(arguments.runs):
            for kind, options in kinds.items():
                report = search(*replay, *options)
                rates[kind].append(report["expansions"] / report["search_seconds"])
                own[kind].append(1e6 * report["own_seconds"] / report["expansions"])
        for kind in kinds:
            rate, overhead = statistics.median(rates[kind]), statistics.median(own[kind])
            print(
                f"{kind:28} {rate:>10,.0f} expansions/s on one thread, own {overhead:.2f} us each"
            )
        rates = one_encoder(folder, arguments.trajectories)
        for kind, rate in rates.items():
            share = rates["search"] / rate
            print(
                f"{THEOREMS} theorems, {kind:24} {rate:>8,.0f} states/s; search {share:.2f} of it"
            )


if __name__ == "__main__":
    main()
