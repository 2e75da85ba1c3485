"""A folder as output: every run adds a part, any reader sees one cache."""

import json
import signal
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pytest

from ebm_encode import EmbeddingCache, _core
from ebm_encode.errors import ArgumentError, CacheFormatError, CacheNotFoundError
from support import FILES, PROVER

# Compacts until it is killed, adding an embedding each time so that there is something to do.
COMPACTOR = """
import sys, itertools, numpy as np
from ebm_encode import _core
folder, identity = sys.argv[1:]
identity = _core.Identity.from_json(identity)
for i in itertools.count():
    writer = _core.CacheWriter(folder)
    writer.open(identity, 16)
    number = len(writer)
    row = np.random.default_rng(number).standard_normal((1, 16)).astype(np.float32)
    assert writer.append([f"state {number}"], row) == [None]
    writer.finish({})
    print(number + 1, flush=True)
    _core.compact(folder)
"""


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "cache"
    made.mkdir()
    return made


@pytest.fixture
def encode(run_cli, llama, folder):
    def run(file, *more):
        code, out, err = run_cli(
            "encode", "--model-path", llama, "--trajectories", file, "--output", folder,
            "--verify-sample", 4, "--json", *more,
        )  # fmt: skip
        return code, json.loads(out) if out else None, err

    return run


def test_runs_add_parts_that_any_reader_takes_as_one_cache(encode, folder, states):
    rows = {}
    for number, file in enumerate(FILES, 1):
        code, summary, _ = encode(file)
        assert code == 0
        assert summary["rows"] == len(EmbeddingCache.open(folder))
        assert len(list(folder.glob("*.parquet"))) == number
        cache = EmbeddingCache.open(folder)
        found = dict(zip(cache.states(), cache.matrix().copy(), strict=True))
        assert all((found[state] == row).all() for state, row in rows.items())
        rows = found
    assert rows.keys() == set(states)
    table = ds.dataset(folder, format="parquet", exclude_invalid_files=True).to_table()
    assert set(table["state_pp"].to_pylist()) == set(states)
    assert pl.read_parquet(folder / "*.parquet").height == len(states)
    counted = duckdb.sql(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchall()
    assert counted == [(len(states),)]
    shown = subprocess.run([PROVER, "inspect", folder], capture_output=True, text=True, check=True)
    assert f"{len(states)}" in shown.stdout
    assert list(folder.parent.iterdir()) == [folder], "nothing is left beside it"


def test_compact_leaves_one_part_with_the_same_embeddings(run_cli, encode, folder):
    for file in FILES:
        encode(file)
    before = EmbeddingCache.open(folder)
    code, out, _ = run_cli("compact", folder)
    assert (code, out) == (0, f"{folder}: {len(before)} rows, {len(FILES)} parts made one\n")
    after = EmbeddingCache.open(folder)
    assert after.states() == before.states()
    assert (after.matrix() == before.matrix()).all()
    assert after.identity == before.identity
    code, out, _ = run_cli("compact", folder, "--json")
    assert (code, json.loads(out)["written"]) == (0, False)
    code, out, _ = run_cli("audit", folder)
    assert code == 0, out


def test_a_compactor_killed_at_any_moment_leaves_every_embedding(folder, identity):
    arguments = [sys.executable, "-c", COMPACTOR, str(folder), identity().to_json()]
    for attempt in range(25):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(attempt % 4 + 1):
                told = process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        cache = EmbeddingCache.open(folder)
        assert len(cache) >= int(told)
        for number, state in enumerate(cache.states()):
            assert state == f"state {number}"
            row = np.random.default_rng(number).standard_normal(16).astype(np.float32)
            assert (cache[state] == row).all()


def test_readers_beside_a_compactor_always_see_a_whole_cache(folder, identity):
    arguments = [sys.executable, "-c", COMPACTOR, str(folder), identity().to_json()]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        least, looks = 1, 0
        while looks < 300 or (least == 1 and looks < 30_000):  # a slow disk holds the compactor up
            looks += 1
            found = len(EmbeddingCache.open(folder))
            assert found >= least
            least = found
        process.kill()
    assert least > 1, "the compactor was at work"


def test_damage_names_the_part(folder, write_cache, rows):
    for number in range(2):
        states = [f"state {number} {i}" for i in range(5)]
        write_cache(folder, states, rows(5, seed=number))
    first, second = sorted(folder.glob("*.parquet"))
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    with pytest.raises(CacheFormatError, match=rf"{second.name}: has .* bytes, manifest.json says"):
        EmbeddingCache.open(folder)
    second.write_bytes(first.read_bytes().ljust(len(whole), b"\0")[: len(whole)])
    with pytest.raises(CacheFormatError, match=second.name):
        _core.audit(folder)
    second.unlink()
    with pytest.raises(CacheNotFoundError, match=second.name):
        EmbeddingCache.open(folder)
    second.write_bytes(whole)
    assert len(EmbeddingCache.open(folder)) == 10
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(second.name, f"../{second.name}"))
    with pytest.raises(CacheFormatError, match=r"manifest\.json: part .* is not a file"):
        EmbeddingCache.open(folder)


def test_what_has_no_parts_is_refused(run_cli, tmp_path, write_cache, rows):
    path = write_cache(tmp_path / "a.parquet", ["a", "b"], rows(2))
    with pytest.raises(ArgumentError, match="is a file"):
        _core.compact(path)
    code, _, err = run_cli("compact", path)
    assert code == 2
    assert "is a file" in err
    assert run_cli("compact", tmp_path / "nothing")[0] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_continues_shows_its_embeddings_at_each_commit(folder, identity, rows):
    made = rows(30)
    names = [f"state {i}" for i in range(30)]
    writer = _core.CacheWriter(folder)
    writer.open(identity(), 16)
    for end in (10, 11, 30):
        start = len(writer)
        assert not any(writer.append(names[start:end], made[start:end]))
        assert writer.commit({"search": end}) == end
        cache = EmbeddingCache.open(folder)
        assert np.array_equal(cache.gather(names[:end]), made[:end])
        assert cache.provenance[-1] == {"search": end}
    writer.close()
    assert len(json.loads((folder / "manifest.json").read_text())["parts"]) == 3


def test_a_file_cannot_be_committed_to(tmp_path, identity, rows):
    writer = _core.CacheWriter(tmp_path / "a.parquet")
    writer.open(identity(), 16)
    writer.append(["x"], rows(1))
    with pytest.raises(ArgumentError, match=r"a\.parquet: only a folder can be added to"):
        writer.commit({})
    assert writer.finish({})[0] == 1
