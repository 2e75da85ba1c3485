"""Loading a cache beside other formats and readers; same rows, one run.

    python benchmarks/cache [--rows 20000] [--dim 4096] [--rounds 5] [--contenders ours,limit,...]

Makes random rows and writes them in every format: as a cache by our writer, as a raw file (both
timed, with fsync), as safetensors, and into LMDB. Then each contender loads all of them in its own
process, in turns, round after round, with the page cache warm and cold; a ratio compares two
contenders of the same round, and medians are printed. `limit` only reads the bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS

from ebm_encode import _core

_SCRIPT = Path(__file__).with_name("contenders.py")
_AT_ONCE = 1024
_IDENTITY = {
    "weights": "none", "config": "none", "tokenizer": "none", "template": "{state}",
    "special_tokens": "none", "pooling": "mean", "layer": -1, "dtype": "float32",
    "quantization": "none", "max_length": None, "truncation": "none",
}  # fmt: skip


def make(folder: Path, count: int, dim: int, names: list[str]) -> dict[str, float]:
    """Writes the same rows in every format; seconds of our writer and of a raw file."""
    draw = np.random.default_rng(0)
    rows = np.memmap(folder / "made.bin", np.float32, "w+", shape=(count, dim))
    for start in range(0, count, _AT_ONCE):
        stop = min(start + _AT_ONCE, count)
        rows[start:stop] = draw.standard_normal((stop - start, dim), np.float32)
    states = [f"n : ℕ\nh : n = {i}\n" + "x y : ℤ\n" * 50 + f"⊢ n = {i}" for i in range(count)]
    (folder / "states.json").write_text(json.dumps(states))
    seconds = {"raw": write_raw(folder / "rows.bin", rows)}
    start = time.perf_counter()
    writer = _core.CacheWriter(folder / "cache.parquet")
    writer.open(_core.Identity.from_json(json.dumps(_IDENTITY)), dim)
    for first in range(0, count, _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        writer.append(states[some], np.ascontiguousarray(rows[some]))
    writer.finish({})
    seconds["ours"] = time.perf_counter() - start
    if "safetensors" in names:
        write_safetensors(folder, rows)
    if "lmdb" in names:
        write_lmdb(folder, states, rows)
    (folder / "made.bin").unlink()
    return seconds


def write_raw(path: Path, rows: np.ndarray) -> float:
    start = time.perf_counter()
    with path.open("wb") as file:
        for first in range(0, len(rows), _AT_ONCE):
            file.write(rows[first : first + _AT_ONCE].tobytes())
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def write_safetensors(folder: Path, rows: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"rows": np.asarray(rows)}, folder / "rows.safetensors")


def write_lmdb(folder: Path, states: list[str], rows: np.ndarray) -> None:
    import lmdb

    size = 2 * rows.nbytes + 2**30
    with lmdb.open(str(folder / "lmdb"), map_size=size) as store, store.begin(write=True) as put:
        for i, (state, row) in enumerate(zip(states, rows, strict=True)):
            # LMDB allows keys of 511 bytes; the number keeps them distinct.
            put.put(f"{i:09}{state}".encode()[:511], row.tobytes())


def run(name: str, folder: Path, page_cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, _SCRIPT, name, folder, page_cache],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    report: dict[str, Any] = json.loads(done.stdout)
    if not report.get("right", True):
        raise SystemExit(f"{name}: loads other rows than were written")
    return report


def show(rounds: list[dict[str, dict[str, Any]]], names: list[str], title: str) -> None:
    print(f"\n{title}\n\n| contender | seconds | peak MB added | limit / it | it / ours |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:

        def ratio(over: str, under: str) -> float:
            return statistics.median(
                each[over]["seconds"] / each[under]["seconds"] for each in rounds
            )

        seconds = statistics.median(each[name]["seconds"] for each in rounds)
        megabytes = statistics.median(each[name]["megabytes"] for each in rounds)
        print(
            f"| {name} | {seconds:.3f} | {megabytes:,.0f} | {ratio('limit', name):.2f}"
            f" | {ratio(name, 'ours'):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--folder", type=Path, help="folder for the files")
    options = parser.parse_args()
    names = list(dict.fromkeys(["ours", "limit", *options.contenders.split(",")]))
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work)
        written = make(folder, options.rows, options.dim, names)
        megabytes = options.rows * options.dim * 4 / 1e6
        print(f"{options.rows:,} rows of {options.dim:,} float32 values, {megabytes:,.0f} MB")
        print(
            f"write and fsync: ours {written['ours']:.2f} s, a raw file {written['raw']:.2f} s,"
            f" ratio {written['raw'] / written['ours']:.2f}"
        )
        for page_cache in ("warm", "cold"):
            rounds = []
            for number in range(options.rounds):
                rounds.append({name: run(name, folder, page_cache) for name in names})
                print(f"{page_cache} round {number + 1} of {options.rounds}", file=sys.stderr)
            show(rounds, names, f"Load all rows into memory, page cache {page_cache}")
        opened = run("first-lookup", folder, "warm")["mapped"]
        print(f"\nmemory-mapped, open and first row: {opened * 1e3:.0f} ms")
        batch = run("batches", folder, "warm")
        print("\n2,048 random rows into one array, milliseconds:")
        for name, seconds in batch.items():
            print(f"  {name}: {seconds * 1e3:.1f} ({seconds / batch['numpy']:.2f}x numpy)")


if __name__ == "__main__":
    main()
