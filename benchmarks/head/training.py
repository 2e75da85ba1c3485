"""How fast a head is trained, beside the mere reading of the rows it needs.

    python benchmarks/head/training.py FOLDER [--states 200000] [--dim 4096]

Writes a cache of random rows and synthetic searches (once), and trains one epoch of each
architecture from the mapped cache. Prints epochs a minute, rows/s in training and in gathering
alone (the same rows in the same order), and the peak of anonymous memory above that of the corpus.
"""

import argparse
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ebm_encode import Identity, open_cache
from ebm_encode._core import CacheWriter
from ebm_encode.heads.batches import SiblingBatches
from ebm_encode.heads.corpus import read_corpus
from ebm_encode.heads.options import HIDDEN, HeadOptions
from ebm_encode.heads.trainer import cache_rows, in_cache, make_lesson, prepare
from ebm_encode.heads.training import train

SPINE, NODES = 8, 400
IDENTITY = """{"weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
"special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1, "dtype": "float32",
"quantization": "none", "max_length": null, "truncation": "none"}"""


def rows_of(theorem: int, random):
    """One search: a proof of `SPINE` steps and `NODES` other states below random parents."""
    name = f"t{theorem}"
    yield name, 0, f"{name} 0", None, False
    for step in range(1, SPINE):
        yield name, step, f"{name} {step}", step - 1, False
    yield name, SPINE, "", SPINE - 1, True
    for number in range(SPINE + 1, SPINE + 1 + NODES):
        parent = int(random.integers(0, number))
        yield name, number, f"{name} {number}", parent if parent != SPINE else 0, False


def write_searches(path: Path, states: int) -> list[str]:
    random = np.random.default_rng(0)
    rows = [row for n in range(states // (SPINE + NODES)) for row in rows_of(n, random)]
    names = ("theorem_name", "state_id", "state_pp", "parent_state_id", "is_proof_complete")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)
    return [row[2] for row in rows if row[2]]


def write_cache(path: Path, states: list[str], dim: int) -> None:
    random = np.random.default_rng(0)
    writer = CacheWriter(path)
    writer.open(Identity.from_json(IDENTITY), dim, checkpoint_rows=20_000)
    for start in range(0, len(states), 4096):
        some = states[start : start + 4096]
        assert not any(writer.append(some, random.standard_normal((len(some), dim), np.float32)))
    writer.finish({"made_by": "benchmarks/head/training.py"})


class Timed:
    """Rows, and the seconds that taking them took."""

    def __init__(self, rows):
        self._rows, self.dim, self.seconds = rows, rows.dim, 0.0

    def take(self, numbers):
        """As the rows do."""
        start = time.perf_counter()
        taken = self._rows.take(numbers)
        self.seconds += time.perf_counter() - start
        return taken


class Peak(threading.Thread):
    """The largest memory of this process's own, in MiB; pages of mapped files do not count."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest = self.now()

    def run(self):
        """Looks twenty times a second."""
        while True:
            self.largest = max(self.largest, self.now())
            time.sleep(0.05)

    @staticmethod
    def now():
        """What it is now."""
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in status if "RssAnon" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--states", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=4096)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    searches, cached = (arguments.folder / name for name in ("searches.parquet", "states.parquet"))
    if not cached.exists():
        write_cache(cached, write_searches(searches, arguments.states), arguments.dim)
        print("written; run again to measure without the writer's memory")
        sys.exit()
    options = HeadOptions(epochs=1, validation=0.01, test=0.01)
    corpus = read_corpus([str(searches)])
    cache = open_cache(cached, mode="mapped")
    before = Peak.now()
    watch = Peak()
    watch.start()
    usable = in_cache(corpus, cache)
    rows = cache_rows(corpus, cache, usable)
    material = prepare(corpus, usable, options)
    start = time.perf_counter()
    lesson = make_lesson(material, rows)
    print(f"moments of all training rows: {time.perf_counter() - start:.1f} s")
    batches = SiblingBatches(corpus, material.split.train, usable, batch_states=512, seed=0)
    for round_ in range(2):
        start, count = time.perf_counter(), 0
        for batch in batches.epoch(1):
            count += len(rows.take(batch.states))
        gather = time.perf_counter() - start
        print(f"gathering alone: {count:,} rows in {gather:.1f} s, {count / gather:,.0f} rows/s")
        for name in ("linear", "mlp"):
            timed = Timed(rows)
            start = time.perf_counter()
            train(replace(lesson, rows=timed), HIDDEN[name], options, seed=0)
            seconds = time.perf_counter() - start
            print(
                f"round {round_} {name}: {seconds:.1f} s an epoch with its validation,"
                f" {60 / seconds:.1f} epochs/min, {count / seconds:,.0f} rows/s; rows were read at"
                f" {gather / timed.seconds:.2f} of the speed of gathering alone"
            )
    batch = 2 * options.batch_states * arguments.dim * 4 / 2**20
    above = watch.largest - before
    print(f"peak memory above the corpus: {above:.0f} MiB (two batches: {batch:.0f} MiB)")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
