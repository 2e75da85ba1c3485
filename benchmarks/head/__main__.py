"""Scoring rows with an energy head: ours, its matrix products alone, and torch.

    python benchmarks/head [--seconds 2] [--threads 2]

Heads of seeded random weights: linear, the default (4096-256-64-1), an ensemble of three, and the
origin's (4096-2048-1024-512-1). Medians in milliseconds for 1, 8, 64 and 1,024 rows. `ratio` is the
head over its matrix products as plain calls of `gemm`, measured in turns with it by the example
`head_speed` of `ebm-search`; torch is measured in a separate process, with the same threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [1, 8, 64, 1024]
HEADS = {
    "linear": ([4096, 1], 1),
    "default": ([4096, 256, 64, 1], 1),
    "ensemble of 3": ([4096, 256, 64, 1], 3),
    "origin": ([4096, 2048, 1024, 512, 1], 1),
}
IDENTITY = {
    "weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
    "special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1,
    "dtype": "float32", "quantization": "none", "max_length": None, "truncation": "none",
}  # fmt: skip


def perceptrons(dims, members):
    import torch

    torch.manual_seed(0)
    made = []
    for _ in range(members):
        layers = []
        for inputs, outputs in pairwise(dims):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.SiLU()]
        made.append(torch.nn.Sequential(*layers[:-1]))
    return made


def write(path, dims, members):
    from safetensors.torch import save_file

    tensors = {
        f"member.{m}.layer.{number}.{name}": getattr(layer, name).detach()
        for m, model in enumerate(perceptrons(dims, members))
        for number, layer in enumerate(model[::2])
        for name in ("weight", "bias")
    }
    head = {
        "identity": IDENTITY,
        "architecture": {"dims": dims, "activation": "silu", "members": members},
        "sign": "energy: lower is better; score = -energy",
        "score_scale": {"mean": 0.0, "deviation": 1.0},
    }
    texts = {"format": "ebm-encode-head", "version": "1", "head": json.dumps(head)}
    save_file(tensors, path, metadata=texts)


def median_ms(work, seconds):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure_torch(seconds, threads):
    """In this process; prints a JSON object."""
    import torch

    torch.set_num_threads(threads)
    found = {}
    for name, (dims, members) in HEADS.items():
        models = perceptrons(dims, members)
        with torch.inference_mode():
            for count in ROWS:
                rows = torch.randn(count, dims[0])
                work = lambda: sum(model(rows) for model in models) / len(models)  # noqa: B023, E731
                found[f"{name} {count}"] = median_ms(work, seconds)
    print(json.dumps(found))


def measure_binding(paths, seconds):
    """Through `ebm_encode.EnergyHead`, in this process; prints a JSON object."""
    import numpy as np

    from ebm_encode import EnergyHead

    found = {}
    for name, path in paths.items():
        head = EnergyHead.open(path)
        for count in ROWS:
            rows = np.random.default_rng(0).standard_normal((count, head.dim), np.float32)
            work = lambda: head.energies(rows)  # noqa: B023, E731
            found[f"{name} {count}"] = median_ms(work, seconds)
    print(json.dumps(found))


def own_process(arguments, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [str(part) for part in arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="Seconds for each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == ["torch"]:
        measure_torch(options.seconds, options.threads)
        return
    if options.part:
        measure_binding(dict(zip(HEADS, options.part, strict=True)), options.seconds)
        return
    build = ["cargo", "build", "--release", "--package", "ebm-search", "--example", "head_speed"]
    subprocess.run(build, cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, (dims, members)) in enumerate(HEADS.items()):
            paths[name] = Path(folder) / f"{number}.safetensors"
            write(paths[name], dims, members)
        again = [sys.executable, __file__, "--seconds", options.seconds]
        again += ["--threads", options.threads, "--part"]
        python = own_process([*again, *paths.values()], options.threads)
        torch = own_process([*again, "torch"], options.threads)
        program = target / "release/examples/head_speed"
        rust = {
            name: own_process([program, path, 5 * options.seconds], options.threads)["times"]
            for name, path in paths.items()
        }
    print("| head | rows | head, ms | matmuls, ms | ratio | from Python, ms | torch, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, times in rust.items():
        for row in times:
            key = f"{name} {row['rows']}"
            print(
                f"| {name} | {row['rows']} | {row['head_ms']:.3f} | {row['products_ms']:.3f} "
                f"| {row['ratio']:.2f} | {python[key]:.3f} | {torch[key]:.3f} |"
            )


if __name__ == "__main__":
    main()
