"""Caches of other software: the rows of the file, or one error that reports the row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache, MappedCache, _core
from ebm_encode.errors import CacheFormatError, EbmEncodeError

DIM = 4
FLOATS = pa.list_(pa.float32())


def write(path, embeddings, *, states=None, kind=FLOATS, **how):
    states = states or [f"x{i} : ℕ\n⊢ x{i} = x{i}" for i in range(len(embeddings))]
    texts = states if isinstance(states, pa.Array) else pa.array(states, pa.string())
    table = pa.table({"state_pp": texts, "embedding": pa.array(embeddings, kind)})
    pq.write_table(table, path, **how)
    return path


@pytest.fixture
def good(rows):
    return rows(12, DIM).tolist()


def test_a_cache_of_empty_lists_is_refused_and_all_are_listed(tmp_path, run_cli):
    path = write(tmp_path / "c.parquet", [[]] * 12)
    for opener in (EmbeddingCache, MappedCache):
        with pytest.raises(CacheFormatError) as refused:
            opener.open(path)
    with pytest.raises(CacheFormatError, match=r"row 0: embedding has no values.*\nhint: "):
        EmbeddingCache.open(path, strict=False)
    assert "row" in str(refused.value)
    assert _core.audit(path)["bad"] == {"malformed": 12}
    code, out, _ = run_cli("audit", path)
    assert code == 1
    assert "malformed: 12" in out
    assert run_cli("inspect", path)[0] == 0


def test_of_a_first_row_without_values_the_good_second_is_not_blamed(tmp_path, good):
    path = write(tmp_path / "c.parquet", [[], *good[1:]])
    with pytest.raises(CacheFormatError, match="row 0: embedding has 0 values, expected 4"):
        EmbeddingCache.open(path)
    report = _core.audit(path)
    assert (report["dim"], report["bad"]) == (DIM, {"malformed": 1})
    assert [example["row"] for example in report["examples"]] == [0]


def test_every_null_and_short_row_is_listed(tmp_path, good):
    bad = [*good[:3], None, *good[4:7], good[7][:2], None, [1.0, None, 2.0, 3.0], *good[10:]]
    path = write(tmp_path / "c.parquet", bad)
    with pytest.raises(CacheFormatError, match="row 3: embedding is null"):
        EmbeddingCache.open(path)
    report = _core.audit(path)
    assert [example["row"] for example in report["examples"]] == [3, 7, 8, 9]
    assert report["rows"] == 12


def test_a_text_that_is_not_utf_8_is_reported_by_its_row(tmp_path, good):
    half_pair = b"\xed\xa0\xb5"
    texts = [f"state {i}".encode() for i in range(2000)]
    texts[1500] = half_pair
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    states = pa.Array.from_buffers(pa.string(), len(texts), buffers)
    rows = np.random.default_rng(0).standard_normal((2000, DIM)).tolist()
    for how in ({}, {"use_dictionary": False}, {"row_group_size": 700}):
        path = write(tmp_path / "c.parquet", rows, states=states, **how)
        for read in (EmbeddingCache.open, _core.audit):
            with pytest.raises(CacheFormatError, match="row 1500: state is not UTF-8 text"):
                read(path)
    assert len(good) == 12


@pytest.mark.parametrize(
    "text",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_texts_of_every_arrow_type_are_read(tmp_path, good, text):
    states = pa.array([f"s{i}" for i in range(12)], pa.string()).cast(text)
    cache = EmbeddingCache.open(write(tmp_path / "c.parquet", good, states=states))
    assert cache.states() == [f"s{i}" for i in range(12)]
    assert (cache.matrix() == np.array(good, np.float32)).all()


def test_a_state_in_two_columns_is_no_cache(tmp_path):
    texts = pa.array(["a", "b"])
    path = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_arrays([texts, texts], ["state_pp", "state_pp"]), path)
    with pytest.raises(CacheFormatError, match=r"column 1 \(state_pp\).*expected lists"):
        EmbeddingCache.open(path)


def test_one_value_a_row_is_a_cache(tmp_path):
    path = write(tmp_path / "c.parquet", [[1.0], [2.0], [3.0]])
    cache = EmbeddingCache.open(path)
    assert (cache.dim, cache["x1 : ℕ\n⊢ x1 = x1"].tolist()) == (1, [2.0])


@pytest.mark.parametrize("left", [True, False])
def test_a_work_folder_is_told_from_a_cache(tmp_path, identity, run_cli, left, rows):
    output = tmp_path / "out.parquet"
    writer = _core.CacheWriter(output)
    writer.open(identity(), DIM, checkpoint_rows=1024)
    if left:
        assert not any(writer.append([f"s{i}" for i in range(1024)], rows(1024, DIM)))
    code, _, err = run_cli("audit", f"{output}.partial")
    assert code == 2
    assert "unfinished run" in err
    assert "hint: " in err
    assert "run the same command again" in err
    writer.close()


def test_a_file_that_is_no_cache_is_one_error_whoever_reads_it(tmp_path):
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    for read in (EmbeddingCache.open, MappedCache.open, _core.audit, _core.describe):
        with pytest.raises(EbmEncodeError, match=r"c\.parquet"):
            read(path)
