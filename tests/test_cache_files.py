"""One file, many readers and writers: pyarrow, polars, duckdb, Rust."""

import json
import subprocess
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebm_encode import EmbeddingCache, MappedCache, _core, open_cache
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    CacheFormatError,
    CacheNotFoundError,
    IdentityMismatchError,
    UnknownStateError,
)
from support import PROVER

STATES = ["⊢ True", "n : ℕ\n⊢ n = n", "", "  spaces kept \n"]


@pytest.fixture
def ours(tmp_path, write_cache, rows):
    return write_cache(tmp_path / "ours.parquet", STATES, rows(4))


def test_pyarrow_polars_and_duckdb_read_our_file(ours, rows):
    expected = rows(4)
    table = pq.read_table(ours)
    assert table.column(0).to_pylist() == STATES
    assert (np.stack(table.column(1).to_numpy()) == expected).all()
    assert table.schema.remove_metadata() == pa.schema(_core.CacheSchema())
    frame = pl.read_parquet(ours)
    assert frame["state_pp"].to_list() == STATES
    assert (np.array(frame["embedding"].to_list(), np.float32) == expected).all()
    fetched = duckdb.sql(f"SELECT state_pp, embedding FROM '{ours}'").fetchall()
    assert [state for state, _ in fetched] == STATES
    assert (np.array([row for _, row in fetched], np.float32) == expected).all()


def test_every_page_has_a_checksum_that_others_check_too(tmp_path, write_cache, rows):
    count = 1500  # two row groups, several pages
    states, expected = [f"⊢ {i} = {i}" for i in range(count)], rows(count)
    path = write_cache(tmp_path / "a.parquet", states, expected)
    table = pq.read_table(path, page_checksum_verification=True)
    assert table.column(0).to_pylist() == states
    assert (np.stack(table.column(1).to_numpy()) == expected).all()
    metadata, good = pq.read_metadata(path), path.read_bytes()
    for group in range(metadata.num_row_groups):
        for column in range(2):
            chunk = metadata.row_group(group).column(column)
            assert chunk.has_offset_index
            damaged = bytearray(good)
            damaged[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(OSError, match="CRC"):
                pq.read_table(path, page_checksum_verification=True)
            with pytest.raises(CacheFormatError, match=f"row group {group}: .*CRC") as refused:
                EmbeddingCache.open(path, strict=False)
            assert str(path) in str(refused.value)


def test_the_footer_is_one_json_value_and_flat_keys(ours):
    metadata = pq.read_metadata(ours).metadata
    whole = json.loads(metadata[_core.METADATA_KEY.encode()])
    assert whole["format_version"] == _core.FORMAT_VERSION
    assert whole["identity"]["dtype"] == metadata[b"ebm_encode.dtype"].decode() == "float32"
    assert (whole["rows"], whole["dim"]) == (4, 16)
    assert metadata[b"ebm_encode.rows"] == b"4"
    assert metadata[b"ebm_encode.model"] == b"a model"


def test_the_schema_is_frozen():
    """A change here is a change of the format: it needs a new format version."""
    schema = pa.schema(_core.CacheSchema())
    assert [(f.name, str(f.type), f.nullable) for f in schema] == [
        ("state_pp", "string", False),
        ("embedding", "list<element: float not null>", False),
    ]
    assert (_core.METADATA_KEY, _core.FORMAT_VERSION) == ("ebm_encode", 1)


def test_python_reads_views_of_memory_that_rust_owns(ours, rows):
    cache = EmbeddingCache.open(ours)
    matrix = cache.matrix()
    assert (matrix == rows(4)).all()
    for i, state in enumerate(cache.states()):
        row = cache[state]
        assert row.ctypes.data == matrix.ctypes.data + i * 16 * 4
        assert row.base is cache
        assert not row.flags.writeable
        assert not row.flags.owndata
    assert not matrix.flags.writeable
    many = cache.get_many([STATES[2], "absent"])
    assert many[0].ctypes.data == cache[STATES[2]].ctypes.data
    assert many[1] is None
    assert STATES[1] in cache
    assert "absent" not in cache
    assert cache.get("absent") is None
    with pytest.raises(KeyError, match="absent"):
        cache["absent"]
    with pytest.raises(ValueError, match=r"read-only|cannot set WRITEABLE"):
        matrix[0, 0] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        matrix.setflags(write=True)
    del cache
    assert (matrix == rows(4)).all(), "a view keeps the memory alive"


def write_foreign(path, text, numbers, width, *, store_schema=True, rows=None):
    """A file as pyarrow users write one."""
    values = np.random.default_rng(5).standard_normal((3, width)) if rows is None else rows
    if pa.types.is_fixed_size_list(numbers):
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(values.ravel(), numbers.value_type), width
        )
    else:
        lists = pa.array([list(row) for row in values], pa.list_(numbers.value_type)).cast(numbers)
    table = pa.table({"s": pa.array(["a", "b", "c"], text), "e": lists})
    pq.write_table(table, path, store_schema=store_schema)
    return values


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
def test_the_reader_takes_every_variant(tmp_path, kind, number, text, store_schema):
    make = {
        "list": pa.list_,
        "large_list": pa.large_list,
        "fixed_size_list": lambda number: pa.list_(number, 4),
    }[kind]
    path = tmp_path / "foreign.parquet"
    values = write_foreign(path, text, make(number), 4, store_schema=store_schema)
    cache = EmbeddingCache.open(path)
    assert cache.states() == ["a", "b", "c"]
    expected = values.astype(number.to_pandas_dtype()).astype(np.float32)
    assert (cache.matrix() == expected).all()
    assert cache.identity is None


@pytest.mark.parametrize("codec", ["snappy", "gzip", "brotli", "lz4", "zstd", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_reader_takes_every_codec_and_page(tmp_path, codec, version):
    path = tmp_path / "foreign.parquet"
    rows = np.random.default_rng(0).standard_normal((5000, 7)).astype(np.float32)
    table = pa.table({"s": [str(i) for i in range(5000)], "e": list(rows), "more": range(5000)})
    pq.write_table(
        table,
        path,
        compression=codec,
        data_page_version=version,
        row_group_size=1700,
        data_page_size=4096,
        use_byte_stream_split=["e.list.element"],
        use_dictionary=["s"],
        write_page_checksum=True,
    )
    assert (EmbeddingCache.open(path).matrix() == rows).all()


def test_polars_and_duckdb_files_are_caches(tmp_path, rows):
    expected = rows(3, 4)
    frame = pl.DataFrame(
        {"s": ["a", "b", "c"], "e": expected.tolist()}, schema_overrides={"e": pl.List(pl.Float32)}
    )
    frame.write_parquet(tmp_path / "polars.parquet")
    array = frame.with_columns(pl.col("e").cast(pl.Array(pl.Float32, 4)))
    array.write_parquet(tmp_path / "polars-array.parquet")
    duckdb.sql(f"COPY (SELECT s, e::FLOAT[] AS e FROM frame) TO '{tmp_path}/duck.parquet'")
    for name in ("polars", "polars-array", "duck"):
        assert (EmbeddingCache.open(tmp_path / f"{name}.parquet").matrix() == expected).all()


def table(text, lists):
    return pa.table({"s": text, "e": lists})


def float_lists(*rows):
    return pa.array(rows, pa.list_(pa.float32()))


TEXT2 = pa.array(["a", "b"])
REFUSED = {
    "one column": (pa.table({"s": TEXT2}), "1 column"),
    "numbers first": (table(pa.array([1, 2]), float_lists([1], [2])), "column 0 (s) is Int64"),
    "bytes first": (
        table(pa.array([b"a", b"b"]), float_lists([1], [2])),
        "column 0 (s) is Binary",
    ),
    "no lists": (table(TEXT2, pa.array([1.0, 2.0])), "column 1 (e) is Float64"),
    "lists of integers": (table(TEXT2, pa.array([[1], [2]])), "expected lists of float"),
    "lists of text": (table(TEXT2, pa.array([["x"], ["y"]])), "expected lists of float"),
    "nested lists": (table(TEXT2, pa.array([[[1.0]], [[2.0]]])), "expected lists of float"),
    "a struct": (table(TEXT2, pa.array([{"x": 1.0}, {"x": 2.0}])), "expected lists of float"),
    "ragged": (table(TEXT2, float_lists([1, 2], [3])), "row 1: embedding has 1 values, expected 2"),
    "null state": (table(pa.array(["a", None]), float_lists([1], [2])), "row 1: state is null"),
    "null row": (table(TEXT2, float_lists([1], None)), "row 1: embedding is null"),
    "null value": (table(TEXT2, float_lists([1, 2], [3, None])), "row 1: embedding has a null"),
    "swapped columns": (
        pa.table({"e": float_lists([1], [2]), "s": TEXT2}),
        "column 0 (e) is List",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_malformed_file_is_refused_by_name(tmp_path, name):
    content, expected = REFUSED[name]
    path = tmp_path / "bad.parquet"
    pq.write_table(content, path)
    for strict in (True, False):
        with pytest.raises(CacheFormatError, match=r"bad\.parquet") as refused:
            EmbeddingCache.open(path, strict=strict)
        assert expected in str(refused.value)


def test_what_is_no_parquet_file_is_refused(tmp_path, ours):
    with pytest.raises(CacheNotFoundError):
        EmbeddingCache.open(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet"):
        EmbeddingCache.open(tmp_path / "folder")
    whole = Path(ours).read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[: len(whole) // 2], whole + b"x"):
        (tmp_path / "broken.parquet").write_bytes(content)
        with pytest.raises(CacheFormatError, match=r"broken\.parquet"):
            EmbeddingCache.open(tmp_path / "broken.parquet")


def test_a_newer_format_is_refused(tmp_path, ours):
    whole = json.loads(pq.read_metadata(ours).metadata[b"ebm_encode"]) | {"format_version": 99}
    newer = pq.read_table(ours).replace_schema_metadata({"ebm_encode": json.dumps(whole)})
    pq.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(CacheFormatError, match="format version 99"):
        EmbeddingCache.open(tmp_path / "newer.parquet")


@pytest.mark.parametrize("kept", [0, 4])
def test_a_footer_that_claims_a_huge_dimension_costs_no_memory(tmp_path, ours, kept):
    whole = json.loads(pq.read_metadata(ours).metadata[b"ebm_encode"]) | {"dim": 10**11}
    claiming = pq.read_table(ours).slice(0, kept)
    claiming = claiming.replace_schema_metadata({"ebm_encode": json.dumps(whole)})
    pq.write_table(claiming, tmp_path / "huge.parquet")
    if kept:
        for read in (EmbeddingCache.open, _core.audit):
            with pytest.raises(CacheFormatError, match=r"huge\.parquet"):
                read(tmp_path / "huge.parquet")
    else:
        assert len(EmbeddingCache.open(tmp_path / "huge.parquet")) == 0
        assert _core.audit(tmp_path / "huge.parquet")["rows"] == 0


def test_a_file_that_pyarrow_writes_with_our_schema_is_ours(tmp_path, ours, rows):
    """The schema and the footer travel through Python and come back the same."""
    metadata = pq.read_metadata(ours).metadata
    footer = {key: value for key, value in metadata.items() if key.startswith(b"ebm_encode")}
    arrays = [pa.array(STATES), pa.array(list(rows(4)), pa.schema(_core.CacheSchema())[1].type)]
    schema = pa.schema(_core.CacheSchema()).with_metadata(footer)
    pq.write_table(pa.table(arrays, schema=schema), tmp_path / "theirs.parquet")
    one, other = EmbeddingCache.open(ours), EmbeddingCache.open(tmp_path / "theirs.parquet")
    assert one.identity == other.identity
    assert one.provenance == other.provenance == [{"model": "a model"}]
    assert (one.matrix() == other.matrix()).all()
    result = subprocess.run(
        [PROVER, "inspect", tmp_path / "theirs.parquet"], capture_output=True, text=True, check=True
    )
    assert f"encoder    {one.identity.digest}" in result.stdout


def test_embeddings_are_gathered_into_the_callers_memory(ours):
    cache = EmbeddingCache.open(ours)
    wanted = [STATES[2], STATES[0], STATES[2]] * 200
    expected = np.stack(cache.get_many(wanted))
    assert (cache.gather(wanted) == expected).all()
    batch = torch.zeros(len(wanted), cache.dim)
    out = batch.numpy()
    assert cache.gather(wanted, out) is out
    assert (batch.numpy() == expected).all()
    assert cache.gather([]).shape == (0, cache.dim)


def test_gathering_writes_all_or_nothing(ours):
    cache = EmbeddingCache.open(ours)
    out = np.full((3, cache.dim), 7, np.float32)
    with pytest.raises(UnknownStateError, match=r'no row of 2 of the states asked for: "x", "y"'):
        cache.gather(["x", STATES[0], "y"], out)
    assert (out == 7).all()
    frozen = np.zeros((1, cache.dim), np.float32)
    frozen.flags.writeable = False
    for wrong in (out, frozen, np.zeros((cache.dim, 1), np.float32).T[:, ::-1]):
        with pytest.raises(ArgumentError, match="out"):
            cache.gather(STATES[:1], wrong)
    with pytest.raises(TypeError):
        cache.gather(STATES[:1], np.zeros((1, cache.dim)))


def test_rows_in_fortrans_order_are_refused(ours, tmp_path, identity, rows):
    """Their memory is contiguous as well, column by column; read row by row it is scrambled."""
    cache = EmbeddingCache.open(ours)
    with pytest.raises(ArgumentError, match="out must be C-contiguous"):
        cache.gather(STATES, np.zeros((len(STATES), cache.dim), np.float32, order="F"))
    writer = _core.CacheWriter(tmp_path / "new.parquet")
    writer.open(identity(), 16)
    with pytest.raises(ArgumentError, match="rows: must be C-contiguous"):
        writer.append(["a", "b"], np.asfortranarray(rows(2)))


def test_strict_opening_refuses_bad_rows_and_lenient_does_not(tmp_path, rows):
    values = rows(4)
    values[2] = 0
    content = pa.table({"s": STATES, "e": list(values)})
    pq.write_table(content, tmp_path / "zeros.parquet")
    with pytest.raises(BadRowsError, match="1 bad rows of 4"):
        EmbeddingCache.open(tmp_path / "zeros.parquet")
    assert len(EmbeddingCache.open(tmp_path / "zeros.parquet", strict=False)) == 4


def test_identity_is_enforced_and_unknown_is_different(tmp_path, ours, identity, rows):
    cache = EmbeddingCache.open(ours)
    cache.require_identity(identity(), "the model")
    with pytest.raises(IdentityMismatchError, match=r"pooling \(mean here, last there\)"):
        cache.require_identity(identity(pooling="last"), "the model")
    pq.write_table(pa.table({"s": STATES, "e": list(rows(4))}), tmp_path / "plain.parquet")
    with pytest.raises(IdentityMismatchError, match="unknown"):
        EmbeddingCache.open(tmp_path / "plain.parquet").require_identity(identity(), "the model")


def test_the_prover_shows_a_cache_and_refuses_what_it_cannot_read(ours, tmp_path):
    def prover(*arguments):
        return subprocess.run([PROVER, *arguments], capture_output=True, text=True, check=False)

    shown = prover("inspect", ours, "--near", STATES[1])
    assert shown.returncode == 0
    for expected in ("rows       4", "dimension  16", "pooling", "nearest to n : ℕ ⏎ ⊢ n = n"):
        assert expected in shown.stdout
    missing = prover("inspect", ours, "--near", "no such state")
    assert (missing.returncode, "none of its 4 rows" in missing.stderr) == (2, True)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1PAR1")
    refused = prover("inspect", broken)
    assert (refused.returncode, "broken.parquet" in refused.stderr) == (2, True)
    assert prover("inspect").returncode == 2


@given(
    texts=st.lists(st.text(), unique=True, min_size=1, max_size=40),
    dim=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
    group=st.integers(1, 50),
)
def test_any_file_pyarrow_writes_reads_the_same(tmp_path_factory, texts, dim, seed, group):
    path = tmp_path_factory.mktemp("any") / "any.parquet"
    values = np.random.default_rng(seed).standard_normal((len(texts), dim)).astype(np.float32)
    pq.write_table(pa.table({"s": texts, "e": list(values)}), path, row_group_size=group)
    cache = EmbeddingCache.open(path)
    assert cache.states() == texts
    assert (cache.matrix() == values).all()


@given(
    rows=st.integers(1, 300),
    dim=st.integers(1, 70),
    page=st.integers(1, 5000),
    version=st.sampled_from(["1.0", "2.0"]),
    codec=st.sampled_from(["none", "zstd", "snappy"]),
    nullable=st.booleans(),
    batch=st.integers(1, 100),
)
def test_plain_pages_of_any_shape_read_the_same(
    tmp_path_factory, rows, dim, page, version, codec, nullable, batch
):
    path = tmp_path_factory.mktemp("plain") / "plain.parquet"
    values = np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)
    child = pa.field("element", pa.float32(), nullable=nullable)
    schema = pa.schema(
        [pa.field("s", pa.string()), pa.field("e", pa.list_(child), nullable=nullable)]
    )
    arrays = [pa.array(map(str, range(rows))), pa.array(list(values), pa.list_(child))]
    pq.write_table(
        pa.table(arrays, schema=schema), path, data_page_size=page, data_page_version=version,
        compression=codec, use_dictionary=False, write_batch_size=batch,
    )  # fmt: skip
    assert (EmbeddingCache.open(path, strict=False).matrix() == values).all()
    if version == "2.0" or codec != "none":
        with pytest.raises(CacheFormatError, match="cannot be mapped"):
            MappedCache.open(path)
        return
    try:
        mapped = MappedCache.open(path, strict=False)
    except CacheFormatError:
        return  # its pages cut rows apart
    assert (mapped.gather_rows(np.arange(rows)) == values).all()


def test_checksums_are_verified_unless_the_file_is_trusted(tmp_path, ours):
    cache = EmbeddingCache.open(ours)
    value = cache.matrix()[2, 7].tobytes()
    content = bytearray(ours.read_bytes())
    content[content.index(value)] ^= 1
    path = tmp_path / "flipped.parquet"
    path.write_bytes(content)
    state = cache.states()[2]
    for mode in ("memory", "mapped"):
        with pytest.raises(CacheFormatError, match=r"row group 0: .*checksum"):
            open_cache(path, mode=mode).gather([state])
        trusted = open_cache(path, mode=mode, verify_checksums=False)
        assert trusted.gather([state])[0, 7] != cache.matrix()[2, 7]
