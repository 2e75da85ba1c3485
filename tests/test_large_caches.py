"""Sizes at which 32 bits end: simulated, with rows that are short or are there once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import MappedCache, _core, open_cache

DIM = 4096
GROUP = 1024
GROUPS = 600
"""Of 1,024 rows each: 2.5 thousand million values. 32-bit list offsets end at 524,288 rows."""


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((GROUP, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def stand_in(rows, tmp_path_factory):
    """A file of 600 row groups which all are the same bytes: true offsets and counts, 17 MB."""
    folder = tmp_path_factory.mktemp("large")
    one, metadata, path = (folder / name for name in ("one", "metadata", "many.parquet"))
    element = pa.field("element", pa.float32(), nullable=False)
    schema = pa.schema(
        [
            pa.field("state_pp", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(element), nullable=False),
        ]
    )
    offsets = np.arange(0, (GROUP + 1) * DIM, DIM, dtype=np.int32)
    lists = pa.ListArray.from_arrays(offsets, rows.ravel(), type=schema.field(1).type)
    states = pa.array([f"state {i}" for i in range(GROUP)])
    pq.write_table(
        pa.table([states, lists], schema=schema), one, use_dictionary=False, compression="none",
        row_group_size=GROUP, write_batch_size=16 * DIM,
    )  # fmt: skip
    many = pq.read_metadata(one)
    for _ in range(GROUPS - 1):
        many.append_row_groups(pq.read_metadata(one))
    many.write_metadata_file(metadata)
    path.write_bytes(_cut(one.read_bytes())[0] + _cut(metadata.read_bytes())[1])
    return path


def _cut(content):
    """What is before a Parquet file's metadata, and the rest."""
    at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return content[:at], content[at:]


def test_more_values_than_32_bit_offsets_can_count(stand_in, rows):
    assert GROUPS * GROUP * DIM > 2**31
    parquet = pq.ParquetFile(stand_in)
    last = parquet.read_row_group(GROUPS - 1)["embedding"].to_numpy()
    assert np.array_equal(np.stack(last), rows), "another reader takes the file as it is meant"
    assert _core.describe(stand_in)[0]["rows"] == GROUPS * GROUP
    cache = MappedCache.open(stand_in)
    assert len(cache) == GROUPS * GROUP
    wanted = np.array([0, 524_287, 524_288, 524_289, GROUPS * GROUP - 1])
    assert np.array_equal(cache.gather_rows(wanted), rows[wanted % GROUP])
    # Of a state's embeddings the newest wins.
    assert cache.positions(["state 7"]) == [(GROUPS - 1) * GROUP + 7]
    assert np.array_equal(cache["state 1023"], rows[1023])


@pytest.mark.thorough
def test_ten_million_rows(tmp_path, identity):
    """Written as a search would, a part at a time, and read in both modes; 4 values a row."""
    count, parts, batch, dim = 10_000_000, 4, 100_000, 4
    folder = tmp_path / "cache"
    folder.mkdir()
    writer = _core.CacheWriter(folder)
    writer.open(identity(), dim, checkpoint_rows=count, checkpoint_seconds=3600)
    draw = np.random.default_rng(1)
    sums = np.zeros(dim)
    for start in range(0, count, batch):
        made = draw.standard_normal((batch, dim), np.float32)
        sums += made.sum(0, dtype=np.float64)
        assert not any(writer.append([f"s{i}" for i in range(start, start + batch)], made))
        if (start + batch) % (count // parts) == 0:
            assert writer.commit({}) == start + batch
    writer.close()
    asked = [f"s{i}" for i in (0, 1, 4_999_999, 5_000_000, 9_999_999)]
    cache = open_cache(folder, mode="memory", strict=False)
    assert len(cache) == count
    assert np.allclose(cache.matrix().sum(0, dtype=np.float64), sums)
    assert np.array_equal(cache.matrix()[-batch:], made)
    found = cache.gather(asked)
    del cache
    mapped = open_cache(folder, mode="mapped")
    assert np.array_equal(mapped.gather(asked), found)
    assert mapped.positions(asked).tolist() == [0, 1, 4_999_999, 5_000_000, 9_999_999]
    assert sum(file["rows"] for file in _core.describe(folder)) == count
