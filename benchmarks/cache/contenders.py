"""One way to load a cache, in its own process: `python contenders.py NAME FOLDER warm|cold`.

FOLDER holds the same rows in every format (see `__main__.py`). Each loader returns the states and
all rows as one float32 matrix `[rows, dim]`; imports happen before the clock starts. The figures go
to standard output as JSON.
"""

import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from peak_memory import most_resident

Loaded = tuple[list[str], np.ndarray]
Loader = Callable[[], Loaded]


def ours(folder: Path) -> Loader:
    """`EmbeddingCache.open`: every row checked, an index of the states."""
    return _ours(folder, strict=True)


def ours_unchecked(folder: Path) -> Loader:
    """The same without row checks; page checksums are still verified."""
    return _ours(folder, strict=False)


def _ours(folder: Path, *, strict: bool) -> Loader:
    from ebm_encode import EmbeddingCache

    def load() -> Loaded:
        cache = EmbeddingCache.open(folder / "cache.parquet", strict=strict)
        return cache.states(), cache.matrix()

    return load


def pyarrow(folder: Path) -> Loader:
    """pyarrow, the lists flattened."""
    import pyarrow.parquet as pq

    def load() -> Loaded:
        return _of_arrow(pq.read_table(folder / "cache.parquet"))

    return load


def polars(folder: Path) -> Loader:
    """polars, the lists exploded."""
    import polars as pl

    def load() -> Loaded:
        frame = pl.read_parquet(folder / "cache.parquet")
        values = frame["embedding"].explode().to_numpy()
        return frame["state_pp"].to_list(), values.reshape(frame.height, -1)

    return load


def duckdb(folder: Path) -> Loader:
    """duckdb, through an Arrow table."""
    import duckdb as db

    def load() -> Loaded:
        return _of_arrow(db.sql(f"SELECT * FROM '{folder / 'cache.parquet'}'").to_arrow_table())

    return load


def datasets(folder: Path) -> Loader:
    """Hugging Face datasets; its copy of the file is made before the clock starts."""
    import datasets as hf

    hf.disable_progress_bars()
    source, copy = str(folder / "cache.parquet"), str(folder / "datasets")
    hf.Dataset.from_parquet(source, cache_dir=copy)

    def load() -> Loaded:
        return _of_arrow(hf.Dataset.from_parquet(source, cache_dir=copy).data)

    return load


def safetensors(folder: Path) -> Loader:
    """safetensors, with the states in a JSON file."""
    from safetensors.numpy import load_file

    def load() -> Loaded:
        return _states(folder), load_file(folder / "rows.safetensors")["rows"]

    return load


def lmdb(folder: Path) -> Loader:
    """LMDB, one entry per state."""
    import lmdb as db

    def load() -> Loaded:
        states, rows = [], []
        with db.open(str(folder / "lmdb"), readonly=True) as store, store.begin() as view:
            for state, row in view.cursor():
                states.append(state.decode())
                rows.append(row)
        return states, np.frombuffer(b"".join(rows), np.float32).reshape(len(states), -1)

    return load


def raw_mapped(folder: Path) -> Loader:
    """A raw file, memory-mapped and copied, with the states in a JSON file."""

    def load() -> Loaded:
        states = _states(folder)
        rows = np.memmap(folder / "rows.bin", np.float32, "r").reshape(len(states), -1)
        return states, np.array(rows)

    return load


def limit(folder: Path) -> Loader:
    """The bytes of a raw file read into fresh huge pages, without states: the read limit."""

    def load() -> Loaded:
        size = (folder / "rows.bin").stat().st_size
        fresh = mmap.mmap(-1, size)
        fresh.madvise(mmap.MADV_HUGEPAGE)
        with (folder / "rows.bin").open("rb", buffering=0) as file:
            view, filled = memoryview(fresh), 0
            while filled < size:
                filled += file.readinto(view[filled:])
        return [], np.frombuffer(fresh, np.float32)

    return load


def _of_arrow(table: Any) -> Loaded:
    """The columns of an Arrow table, the lists flattened."""
    chunks = table.column("embedding").chunks
    values = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    return table.column("state_pp").to_pylist(), values.reshape(len(table), -1)


def _states(folder: Path) -> list[str]:
    states: list[str] = json.loads((folder / "states.json").read_text())
    return states


CONTENDERS: dict[str, Callable[[Path], Loader]] = {
    "ours": ours,
    "ours-unchecked": ours_unchecked,
    "limit": limit,
    "raw-mapped": raw_mapped,
    "safetensors": safetensors,
    "pyarrow": pyarrow,
    "polars": polars,
    "duckdb": duckdb,
    "datasets": datasets,
    "lmdb": lmdb,
}


def drop_from_page_cache(folder: Path) -> None:
    """Drops the folder's files from the page cache, so that the next read is from disk."""
    os.sync()
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def batches(cache: Any, rows: np.ndarray) -> dict[str, float]:
    """Median seconds for 2,048 random rows into one array, by us and by numpy from memory."""
    draw = np.random.default_rng(0)
    out = np.empty((2048, rows.shape[1]), np.float32)
    found: dict[str, list[float]] = {"gather": [], "gather_rows": [], "numpy": []}
    states = cache.states()
    for _ in range(15):
        chosen = draw.integers(0, len(rows), 2048)
        names = [states[i] for i in chosen]
        for name, step in (
            ("gather", lambda names=names: cache.gather(names, out)),
            ("gather_rows", lambda chosen=chosen: cache.gather_rows(chosen, out)),
            ("numpy", lambda chosen=chosen: np.take(rows, chosen, axis=0, out=out, mode="clip")),
        ):
            start = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def first_lookup(folder: Path) -> dict[str, float]:
    """Median seconds to open a memory-mapped cache and read one row, page cache warm."""
    from ebm_encode import MappedCache

    state = _states(folder)[-1]
    found = []
    for _ in range(5):
        start = time.perf_counter()
        MappedCache.open(folder / "cache.parquet").get(state)
        found.append(time.perf_counter() - start)
    return {"mapped": float(np.median(found))}


def main() -> None:
    name, folder, cold = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "cold"
    report: dict[str, Any]
    if name == "batches":
        from ebm_encode import EmbeddingCache

        cache = EmbeddingCache.open(folder / "cache.parquet")
        report = batches(cache, np.array(cache.matrix()))
    elif name == "first-lookup":
        report = first_lookup(folder)
    else:
        load = CONTENDERS[name](folder)
        if cold:
            drop_from_page_cache(folder)
        before = most_resident() / 2**20
        start = time.perf_counter()
        states, rows = load()
        seconds = time.perf_counter() - start
        peak = most_resident() / 2**20
        truth = np.memmap(folder / "rows.bin", np.float32, "r")
        flat = rows.reshape(-1)
        # LMDB sorts by key; of the others the ends and the middle are compared.
        picks = [0, len(truth) // 2, len(truth) - 1]
        right = name == "lmdb" or all(flat[i] == truth[i] for i in picks)
        report = {
            "seconds": seconds, "megabytes": peak - before,
            "right": bool(right and flat.size == truth.size), "states": len(states),
        }  # fmt: skip
    print(json.dumps(report))


if __name__ == "__main__":
    main()
