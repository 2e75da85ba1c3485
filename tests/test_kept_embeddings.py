"""What becomes of embeddings: which are kept, which are not and why, and whose they are."""

import json

import numpy as np
import pytest

from ebm_encode import EmbeddingCache, MappedCache, _core
from ebm_encode._core import CacheWriter
from ebm_encode.errors import ArgumentError, BadRowsError, OutputLockedError
from support import FILES


@pytest.fixture
def copied(tmp_path, write_cache, rows):
    """A folder of two files of one encoder, in which one embedding is another state's."""
    made = rows(4)
    folder = tmp_path / "cache"
    folder.mkdir()
    write_cache(folder / "x.parquet", ["a", "b"], made[:2])
    write_cache(folder / "y.parquet", ["c", "d"], made[[0, 3]])
    return folder


def test_compact_names_what_it_takes_out_and_exits_with_1(copied, run_cli):
    with pytest.raises(BadRowsError):
        EmbeddingCache.open(copied)
    code, out, err = run_cli("compact", copied, "--json")
    assert code == 1
    (left_out,) = json.loads(out)["left_out"]
    assert left_out["state"] == "c"
    assert "equal, up to rounding" in left_out["reason"]
    assert "c: equal" in err
    assert EmbeddingCache.open(copied).states() == ["a", "b", "d"]
    assert run_cli("compact", copied)[0] == 0


def test_a_writer_reports_bad_rows_of_the_output_and_removes_no_file(copied, identity):
    writer = CacheWriter(copied)
    writer.open(identity(), 16)
    assert [(state, bad.kind) for state, bad in writer.left_out()] == [("c", "duplicate")]
    rows, left_out, written = writer.finish({})
    assert (rows, written, [state for state, _ in left_out]) == (3, False, ["c"])
    assert sorted(file.name for file in copied.iterdir()) == ["x.parquet", "y.parquet"]


def test_a_writer_that_is_opened_twice_or_finished_too_early_loses_nothing(
    tmp_path, identity, rows
):
    output = tmp_path / "c.parquet"
    writer = CacheWriter(output)
    for step in (lambda: writer.finish({}), lambda: writer.reject("why"), writer.checkpoint):
        with pytest.raises(ArgumentError, match="not open"):
            step()
    with pytest.raises(OutputLockedError):
        CacheWriter(output)
    writer.open(identity(), 16)
    assert writer.append(["a"], rows(1)) == [None]
    with pytest.raises(ArgumentError, match="open already"):
        writer.open(identity(), 16)
    assert writer.finish({})[0] == 1
    for step in (lambda: writer.open(identity(), 16), lambda: writer.finish({})):
        with pytest.raises(ArgumentError, match=r"closed|not open"):
            step()


def test_rows_are_read_back_in_the_order_asked(tmp_path, identity, rows):
    made = rows(9)
    writer = CacheWriter(tmp_path / "c.parquet")
    writer.open(identity(), 16, checkpoint_rows=4)
    assert not any(writer.append([f"s{i}" for i in range(9)], made))
    states, found = writer.read([7, 2, 2])
    assert states == ["s7", "s2", "s2"]
    assert (found == made[[7, 2, 2]]).all()
    with pytest.raises(ArgumentError, match="no row 9"):
        writer.read([9, 1])
    writer.close()


def test_two_runs_into_one_file_keep_the_provenance_of_both(encode, tmp_path, run_cli):
    output = tmp_path / "out.parquet"
    counts = []
    for file in FILES[:2]:
        code, summary, _ = encode("--verify-sample", 4, output=output, files=[file])
        assert code == 0
        counts.append(summary["rows"] - sum(counts))
    cache = EmbeddingCache.open(output)
    assert [run["rows"] for run in cache.runs] == counts
    assert [run["provenance"] for run in cache.runs] == cache.provenance
    assert MappedCache.open(output).runs == cache.runs
    sources = [[source["path"] for source in run["sources"]] for run in cache.provenance]
    assert sources == [[str(file)] for file in FILES[:2]]
    assert all(run["verification"]["drawn"] == 4 for run in cache.provenance)
    code, out, _ = run_cli("inspect", output)
    assert code == 0
    assert f"run 1 of 2, {counts[0]:,} rows" in out
    assert f"run 2 of 2, {counts[1]:,} rows" in out


def test_a_verdict_does_not_depend_on_what_else_is_in_the_call(rows):
    made = rows(100)
    made[0] *= 100
    for count in (1, 10, 80, 100):
        states = [f"s{i}" for i in range(count)]
        ids = np.arange(count, dtype=np.uint32)
        offsets = np.arange(count + 1, dtype=np.int64)
        assert _core.check_rows(states, ids, offsets, made[:count]) == [None] * count
