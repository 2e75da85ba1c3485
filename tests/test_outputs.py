"""Outputs: one lock for every spelling, work folders that no reader sees, thousands of parts."""

import json
import os
import resource
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pytest

from ebm_encode import EmbeddingCache, MappedCache, _core
from ebm_encode.data.trajectories import read_states
from ebm_encode.errors import OutputConflictError, OutputLockedError

# Holds the lock of an output until its standard input ends.
HOLDER = """
import sys
from ebm_encode._core import CacheWriter
writer = CacheWriter(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""

# Adds many parts, and reads, adds to and compacts the folder.
MANY_PARTS = """
import sys, numpy as np
from ebm_encode import EmbeddingCache, MappedCache, _core
folder, count = sys.argv[1], int(sys.argv[2])
identity = _core.Identity.from_json(sys.argv[3])
def row(number):
    return np.random.default_rng(number).standard_normal((1, 16)).astype(np.float32)
writer = _core.CacheWriter(folder)
writer.open(identity, 16)
for number in range(count):
    assert writer.append([f"state {number}"], row(number)) == [None]
    assert writer.commit({}) == number + 1
writer.close()
assert len(_core.describe(folder)) == count
assert len(EmbeddingCache.open(folder)) == len(MappedCache.open(folder)) == count
assert _core.audit(folder)["rows"] == count
writer = _core.CacheWriter(folder)
writer.open(identity, 16)
assert len(writer) == count
assert (writer.read([0])[1] == row(0)).all()
assert writer.append([f"state {count}"], row(count)) == [None]
writer.finish({})
assert _core.compact(folder)[0] == count + 1
assert len(_core.describe(folder)) == 1
print(len(EmbeddingCache.open(folder)))
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "cache"
    made.mkdir()
    return made


def test_another_process_is_refused_by_every_spelling(
    folder, tmp_path, monkeypatch, run_cli, write_cache, rows
):
    monkeypatch.chdir(folder)
    for name in ("a", "b"):
        write_cache(folder, [name], rows(1, seed=ord(name)))
    before = sorted(folder.iterdir())
    (tmp_path / "link").symlink_to("cache")
    spellings = [
        str(folder), f"{folder}/", f"{folder}/.", f"{folder}//", ".", "./", "../cache", "../link",
        f"{tmp_path}/link/", f"file://{folder}", f"{tmp_path}/link/../cache",
    ]  # fmt: skip
    for held in spellings:
        holder = [sys.executable, "-c", HOLDER, held]
        with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"held\n"
            for spelled in spellings:
                with pytest.raises(OutputLockedError, match="another process"):
                    _core.CacheWriter(spelled)
            code, _, err = run_cli("compact", f"{folder}/")
            assert code == 2
            assert "another process is writing" in err
            process.communicate()
        assert process.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "link"}
    assert sorted(folder.iterdir()) == before, "an unused lock leaves nothing"


def test_an_empty_path_is_refused_and_writes_nothing(tmp_path, monkeypatch, run_cli, llama):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"state_pp": "x"}\n')
    code, _, err = run_cli(
        "encode", "--model-path", llama, "--trajectories", "a.jsonl", "--output", ""
    )
    assert code == 2
    assert "--output" in err
    assert "hint:" in err
    for command in ("compact", "audit", "inspect"):
        code, _, err = run_cli(command, "")
        assert code == 2
        assert "empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_source_is_read_once_however_often_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.jsonl"
    file.write_text('{"state_pp": "x"}\n{"state_pp": "y"}\n')
    (tmp_path / "link.jsonl").symlink_to(file)
    (tmp_path / "deep").mkdir()
    names = [str(file), "a.jsonl", "./a.jsonl", "link.jsonl", "deep/../a.jsonl", f"file://{file}"]
    states = read_states(names)
    assert (states.texts, states.counts.rows, len(states.files)) == (["x", "y"], 2, 1)


def test_no_reader_sees_the_checkpoints_in_a_folder(folder, write_cache, rows, identity):
    made = rows(1510)
    names = [f"state {i}" for i in range(1510)]
    write_cache(folder, names[:10], made[:10])
    writer = _core.CacheWriter(folder)
    writer.open(identity(), 16)
    writer.append(names[10:], made[10:])
    writer.checkpoint()
    saved = {path.suffix for path in (folder / ".partial").iterdir()}
    assert saved == {"", ".rows", ".shard"}
    assert len(EmbeddingCache.open(folder)) == len(MappedCache.open(folder)) == 10
    assert _core.audit(folder)["rows"] == 10
    assert len(_core.describe(folder)) == 1
    assert ds.dataset(folder, exclude_invalid_files=True).count_rows() == 10
    assert ds.dataset(f"{folder}/part-000000000.parquet").count_rows() == 10
    assert len(pl.read_parquet(f"{folder}/*.parquet")) == 10
    assert len(pl.read_parquet(f"{folder}/**/*.parquet")) == 10
    for pattern in ("*.parquet", "**/*.parquet"):
        query = f"select count(*) from read_parquet('{folder}/{pattern}')"
        assert duckdb.sql(query).fetchall() == [(10,)]
    writer.finish({})
    assert not (folder / ".partial").exists()
    assert np.array_equal(EmbeddingCache.open(folder).gather(names), made)


def test_a_folder_of_more_parts_than_descriptors_is_read_added_to_and_compacted(folder, identity):
    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    run = subprocess.run(
        [sys.executable, "-c", MANY_PARTS, folder, "200", identity().to_json()],
        preexec_fn=limited, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout.strip()) == (0, "201"), run.stderr


def test_a_writer_that_was_overtaken_says_so(folder, write_cache, rows, identity):
    """As by a machine that does not see the lock."""
    made = rows(3)
    write_cache(folder, ["a"], made[:1])
    writer = _core.CacheWriter(folder)
    writer.open(identity(), 16)
    writer.append(["b"], made[1:2])
    manifest = folder / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"superseded": []}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(OutputConflictError, match="another process changed this output") as raised:
        writer.finish({})
    assert "\nhint: " in str(raised.value)
    assert EmbeddingCache.open(folder).states() == ["a"]
    again = _core.CacheWriter(folder)
    again.open(identity(), 16)
    assert again.contains_many(["a", "b"]) == [True, True]
    again.finish({})
    assert sorted(EmbeddingCache.open(folder).states()) == ["a", "b"]


def test_lists_stand_beside_a_folder_that_is_given_as_a_dot(folder, monkeypatch, run_cli, llama):
    monkeypatch.chdir(folder)
    long = json.dumps({"state_pp": "x : Nat ⊢ x = 1" + " y" * 400})
    (folder.parent / "a.jsonl").write_text(long + "\n" + '{"state_pp": "x"}\n')
    code, _, err = run_cli(
        "encode", "--model-path", llama, "--trajectories", "../a.jsonl", "--output", ".",
        "--max-length", 64, "--overlong", "skip", "--verify-sample", 1,
    )  # fmt: skip
    assert code == 0, err
    assert (folder.parent / "cache.overlong.jsonl").exists()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet"}
    assert os.fspath(folder) in str(_core.describe(str(folder))[0]["path"])
