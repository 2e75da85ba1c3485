"""Caches and inputs in Google Cloud Storage, by a server on this machine that speaks as it does."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ebm_encode import EmbeddingCache, _core, open_cache
from ebm_encode.data.trajectories import read_states
from ebm_encode.errors import InputError, OutputLockedError
from support import FILES


@pytest.fixture
def google(monkeypatch):
    """The address of a server, with a bucket called `states`."""
    server = Path(__file__).with_name("google_server.py")
    with subprocess.Popen(
        [sys.executable, server], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        address = f"http://{process.stdout.readline().strip()}"
        request = urllib.request.Request(f"{address}/states", method="PUT")
        urllib.request.urlopen(request).close()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield address
        process.kill()


def conditions(server):
    """The generations that writes were made conditional on."""
    with urllib.request.urlopen(f"{server}/-/conditions") as answer:
        return json.load(answer)


def test_google_cloud_storage_holds_files_parts_and_checkpoints(
    google, tmp_path, write_cache, rows, identity
):
    made = rows(2501, dim=24)
    made, other = made[:2500], made[2500:]
    states = [f"state {i}" for i in range(len(made))]
    here = tmp_path / "a.parquet"
    write_cache(here, states, made)
    write_cache("gs://states/deep/a.parquet", states, made)
    assert _core.read_file("gs://states/deep/a.parquet") == here.read_bytes()
    assert _core.list_files("gs://states/deep", "parquet") == ["gs://states/deep/a.parquet"]
    with pytest.raises(OutputLockedError):
        # Its version is asked for just before it is replaced.
        changed_meanwhile("gs://states/deep/a.parquet", identity, other)

    folder = "gs://states/parts"
    for first in (0, 1000):
        write_cache(folder, states[first : first + 1000], made[first : first + 1000])
    assert "0" in conditions(google), "the first manifest takes nobody's place"
    assert set(conditions(google)) > {"0"}, "the second replaces nothing but the first"
    assert len(_core.list_files(folder, "parquet")) == 2
    cache = open_cache(folder)
    assert (cache.gather(states[:2000]) == made[:2000]).all()

    writer = _core.CacheWriter("gs://states/stopped.parquet")
    writer.open(identity(), 24)
    writer.append(states[:300], made[:300])
    writer.checkpoint()
    writer.close()
    writer = _core.CacheWriter("gs://states/stopped.parquet")
    writer.open(identity(), 24)
    assert len(writer) == 300
    writer.finish({})
    assert len(EmbeddingCache.open("gs://states/stopped.parquet")) == 300
    assert _core.list_files("gs://states/stopped.parquet.partial", "parquet") == []


def changed_meanwhile(url, identity, other):
    """Replaces a cache while a writer has it open, then ends the writer."""
    writer = _core.CacheWriter(url)
    writer.open(identity(), 24)
    assert writer.append(["another state"], other) == [None]
    _core.write_file(url, b"another's")
    writer.finish({})


def test_states_are_read_from_google_cloud_storage(google, write_cache, rows):  # noqa: ARG001
    for file in FILES:
        _core.write_file(f"gs://states/in/{file.name}", file.read_bytes())
    write_cache("gs://states/in/cache.parquet", ["x", "y", "z"], rows(3))
    expected = read_states([str(file) for file in FILES]).texts
    one = f"gs://states/in/{FILES[0].name}"
    assert read_states([one]).texts == read_states([str(FILES[0])]).texts
    assert read_states(["gs://states/in"]).texts == expected, "without the cache"
    assert read_states(["gs://states/in/[!c]*.parquet"]).texts == expected
    assert read_states(["gs://states/*n/[!c]*.parquet"]).texts == expected
    with pytest.raises(InputError, match=r"gs://states/none\.parquet: no such file"):
        read_states(["gs://states/none.parquet"])
