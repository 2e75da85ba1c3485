"""Writing and loading a cache beside a plain pyarrow recipe, on the same data in the same run.

    python benchmarks/cache_recipe.py [--rows 20000] [--dim 4096] [--repeat 3] [--no-recipe]

The recipe is what projects like ours do with pyarrow: collect rows in a dictionary of lists and
rewrite the whole table every 10,000 rows; load with `to_pylist` into a dictionary. Every step runs
in its own process, so that peak memory is that of this step only; the two sides take turns, and
medians are printed. The recipe holds rows as Python floats, 32 bytes for every 4, so at full size
(217,499 rows) it does not fit ordinary machines: use --no-recipe there.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from peak_memory import most_resident

from ebm_encode import EmbeddingCache, Identity, __version__
from ebm_encode._core import CacheWriter

FULL_ROWS = 217_499
CHUNK = 1000
REWRITE_EVERY = 10_000
IDENTITY = {
    "weights": "none", "config": "none", "tokenizer": "none", "template": "{state}",
    "special_tokens": "none", "pooling": "mean", "layer": -1, "dtype": "float32",
    "quantization": "none", "max_length": None, "truncation": "none",
}  # fmt: skip


def data(rows: int, dim: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The synthetic cache, in chunks: states of about 300 characters, random rows."""
    draw = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        numbers = range(start, min(start + CHUNK, rows))
        states = [f"case h{i}\n{'x y z : ℝ' * 27}\n⊢ x + {i} = {i} + x" for i in numbers]
        yield states, draw.standard_normal((len(numbers), dim), dtype=np.float32)


def write_ours(path: Path, rows: int, dim: int) -> None:
    writer = CacheWriter(path)
    writer.open(Identity.from_json(json.dumps(IDENTITY)), dim)
    for states, values in data(rows, dim):
        assert not any(writer.append(states, values))
    writer.finish({})


def write_recipe(path: Path, rows: int, dim: int) -> None:
    kept: dict[str, list[float]] = {}
    written = 0
    for states, values in data(rows, dim):
        kept.update(zip(states, values.tolist(), strict=True))
        if len(kept) - written >= REWRITE_EVERY or len(kept) == rows:
            table = pa.table(
                {
                    "state_pp": list(kept),
                    "embedding": pa.array(list(kept.values()), pa.list_(pa.float32())),
                }
            )
            pq.write_table(table, path)
            written = len(kept)


def write_nothing(path: Path, rows: int, dim: int) -> None:
    """Makes the data and drops it: the cost of the measurement."""
    del path
    for _ in data(rows, dim):
        pass


def load_ours(path: Path, rows: int, dim: int) -> None:
    cache = EmbeddingCache.open(path)
    assert cache.matrix().shape == (rows, dim)


def load_ours_unchecked(path: Path, rows: int, dim: int) -> None:
    cache = EmbeddingCache.open(path, strict=False)
    assert cache.matrix().shape == (rows, dim)


def load_recipe(path: Path, rows: int, dim: int) -> None:
    table = pq.read_table(path)
    found = dict(zip(table[0].to_pylist(), table[1].to_pylist(), strict=True))
    assert len(found) == rows
    assert len(next(iter(found.values()))) == dim


STEPS = {
    step.__name__: step
    for step in (write_ours, write_recipe, write_nothing, load_ours, load_ours_unchecked,
                 load_recipe)
}  # fmt: skip


def measure(step: str, path: Path, rows: int, dim: int) -> tuple[float, float]:
    """Runs a step in its own process: seconds and peak memory in MB."""
    command = [sys.executable, __file__, "--step", step, "--path", str(path)]
    command += ["--rows", str(rows), "--dim", str(dim)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(result.stdout)
    return seconds, peak


def run_step(step: str, path: Path, rows: int, dim: int) -> None:
    start = time.perf_counter()
    STEPS[step](path, rows, dim)
    seconds = time.perf_counter() - start
    peak = most_resident() / 1e6
    print(json.dumps([seconds, peak]))


def compare(folder: Path, rows: int, dim: int, repeat: int, *, recipe: bool) -> None:
    ours, theirs = folder / "ours.parquet", folder / "recipe.parquet"
    steps = {"write_nothing": ours, "write_ours": ours, "load_ours": ours,
             "load_ours_unchecked": ours}  # fmt: skip
    if recipe:
        steps |= {"write_recipe": theirs, "load_recipe": theirs}
    found: dict[str, list[tuple[float, float]]] = {step: [] for step in steps}
    for _ in range(repeat):
        ours.unlink(missing_ok=True)
        theirs.unlink(missing_ok=True)
        for step in sorted(steps, reverse=True):  # writing before loading
            found[step].append(measure(step, steps[step], rows, dim))
    median = {step: statistics.median(s for s, _ in runs) for step, runs in found.items()}
    print(f"{rows:,} rows of {dim}: {rows * dim * 4 / 1e6:,.0f} MB; median of {repeat}")
    print(f"{'step':<22}{'seconds':>10}{'rows/s':>12}{'peak MB':>10}")
    for step, runs in found.items():
        peak = max(peak for _, peak in runs)
        print(f"{step:<22}{median[step]:>10.3f}{rows / median[step]:>12,.0f}{peak:>10,.0f}")
    if recipe:
        for verb in ("write", "load"):
            pairs = zip(found[f"{verb}_recipe"], found[f"{verb}_ours"], strict=True)
            ratio = statistics.median(theirs / ours for (theirs, _), (ours, _) in pairs)
            print(f"{verb}: ours is {ratio:.1f} times as fast as the recipe")
    lookups(ours)


def lookups(path: Path) -> None:
    command = ["cargo", "run", "--release", "--quiet", "--package", "ebm-cache"]
    command += ["--example", "lookups", "--", str(path.resolve())]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    print(f"from Rust, one thread: {result.stdout.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help=f"full size is {FULL_ROWS}")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-recipe", action="store_true", help="skip the recipe")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.path, arguments.rows, arguments.dim)
        return
    print(
        f"ebm-encode {__version__}, pyarrow {pa.__version__}, Python {platform.python_version()},"
        f" {platform.machine()}, {os.cpu_count()} cores"
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    compare(arguments.folder, arguments.rows, arguments.dim, arguments.repeat,
            recipe=not arguments.no_recipe)  # fmt: skip
    shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
