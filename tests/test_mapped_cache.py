"""A cache that stays in its files: the same embeddings, checked when they are first read."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache, EmbeddingDataset, MappedCache, open_cache
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    CacheFormatError,
    CacheNotFoundError,
    IdentityMismatchError,
    UnknownStateError,
)

COUNT = 1500
STATES = [f"n : ℕ\n⊢ n + {i} = {i} + n" for i in range(COUNT)]

# Peak memory of a process that reads a few embeddings of a large cache.
READER = """
import sys
from pathlib import Path
from ebm_encode import MappedCache
cache = MappedCache.open(sys.argv[1])
row = cache[sys.argv[2]]
status = Path("/proc/self/status").read_text()
print(row.sum(), next(line.split()[1] for line in status.splitlines() if "RssAnon" in line))
"""


# Reads of a cache whose file is changed under it. In its own process: a fault would end it.
CHANGED = """
import os, shutil, sys
from ebm_encode import MappedCache
from ebm_encode.errors import CacheIOError
path, shorter, state = sys.argv[1:]
cache = MappedCache.open(path)
row = cache[state].copy()
def refused(read):
    try:
        read()
    except CacheIOError as error:
        return "changed in place" in str(error) and path in str(error)
os.rename(shutil.copy(path, path + ".new"), path)
assert (cache[state] == row).all(), "replaced by renaming, the mapped file stands"
cache = MappedCache.open(path)
shutil.copy(shorter, path)
assert refused(lambda: cache[state]) and refused(lambda: cache.gather([state]))
with open(path, "r+b") as file:
    file.truncate(0)
assert refused(lambda: cache[state])
"""


@pytest.fixture
def path(tmp_path, write_cache, rows):
    return write_cache(tmp_path / "cache.parquet", STATES, rows(COUNT))


def test_embeddings_are_those_of_the_cache_in_memory(path, rows):
    mapped, memory = MappedCache.open(path), EmbeddingCache.open(path)
    assert mapped.states() == memory.states()
    assert (mapped.gather(STATES) == rows(COUNT)).all()
    chosen = np.random.default_rng(0).integers(0, COUNT, 700)
    out = np.empty((700, mapped.dim), np.float32)
    assert mapped.gather_rows(chosen, out) is out
    assert (out == memory.matrix()[chosen]).all()
    assert (mapped[STATES[3]] == memory[STATES[3]]).all()
    assert mapped.get("nowhere") is None
    assert STATES[0] in mapped
    assert "nowhere" not in mapped
    assert mapped.identity == memory.identity
    assert mapped.provenance == memory.provenance
    assert repr(mapped) == f"MappedCache({path}, {COUNT} rows of 16)"


def test_training_batches_come_from_a_mapped_cache_too(path, rows):
    dataset = EmbeddingDataset(MappedCache.open(path))
    for batch in dataset.shuffled_batches(256, seed=3):
        assert (batch.rows.numpy() == rows(COUNT)[batch.indices]).all()


def test_the_mode_is_chosen_or_told(path, monkeypatch):
    assert isinstance(open_cache(path), EmbeddingCache)
    assert isinstance(open_cache(path, mode="memory"), EmbeddingCache)
    assert isinstance(open_cache(path, mode="mapped"), MappedCache)
    monkeypatch.setattr("ebm_encode.opening.prefers_mapped", lambda _: True)
    assert isinstance(open_cache(path), MappedCache)
    with pytest.raises(ArgumentError, match="mode 'disk'"):
        open_cache(path, mode="disk")


def test_embeddings_stay_out_of_the_processs_own_memory(tmp_path, write_cache, rows):
    """Anonymous memory of the reader is less than the embeddings: they are the system's pages."""
    dim, count = 4096, 4000
    path = write_cache(tmp_path / "large.parquet", STATES + [f"s{i}" for i in range(2500)],
                       rows(count, dim))  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READER, path, "s7"], capture_output=True, text=True, check=True
    )
    total, kilobytes = done.stdout.split()
    assert float(total) == pytest.approx(rows(count, dim)[COUNT + 7].sum(), abs=1e-3)
    assert int(kilobytes) * 1024 < count * dim * 4, "more than 64 MB of rows"


def test_a_page_is_checked_when_it_is_first_read(path, rows):
    good = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(1).column(1)
    damaged = bytearray(good)
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(damaged)
    mapped = MappedCache.open(path)
    assert (mapped.gather(STATES[:1024]) == rows(COUNT)[:1024]).all()
    with pytest.raises(CacheFormatError, match=r"row group 1: .*CRC") as refused:
        mapped.gather(STATES[-1:])
    assert str(path) in str(refused.value)


def plain(path, states, values):
    """A file of other software whose pages can be mapped."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    table = pa.table({"s": states, "e": lists.cast(pa.list_(pa.float32()))})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    return path


def test_bad_rows_are_refused_when_they_are_read(tmp_path, rows):
    values = rows(20)
    values[7] = 0
    mapped = MappedCache.open(plain(tmp_path / "a.parquet", STATES[:20], values))
    with pytest.raises(BadRowsError, match=r"row 7 .*norm"):
        mapped.gather(STATES[:1])


def test_files_that_cannot_be_mapped_say_so(tmp_path, rows):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"s": STATES[:20], "e": list(rows(20))}), path, compression="zstd")
    with pytest.raises(CacheFormatError, match="row group 0: cannot be mapped; open it in memory"):
        MappedCache.open(path)
    assert len(open_cache(path)) == 20


def test_what_cannot_be_is_refused(path, identity):
    mapped = MappedCache.open(path)
    with pytest.raises(UnknownStateError, match="nowhere"):
        mapped.gather(["nowhere"])
    with pytest.raises(KeyError):
        mapped["nowhere"]
    with pytest.raises(ArgumentError, match="row 99999"):
        mapped.gather_rows(np.array([99999]))
    with pytest.raises(ArgumentError, match="out is"):
        mapped.gather(STATES[:2], np.empty((1, 16), np.float32))
    with pytest.raises(IdentityMismatchError, match="dtype"):
        mapped.require_identity(identity(dtype="bfloat16"), "mine")
    with pytest.raises(CacheNotFoundError):
        MappedCache.open(path.with_name("nothing.parquet"))


def test_a_file_that_is_changed_in_place_is_refused(path, tmp_path, write_cache, rows):
    shorter = write_cache(tmp_path / "shorter.parquet", STATES[:3], rows(3))
    command = [sys.executable, "-c", CHANGED, path, shorter, STATES[-1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
