"""Digests of files: independent of our code, remembered, and never stale."""

import json
import os
from types import SimpleNamespace

import blake3
import pytest

from ebm_encode import digests
from ebm_encode.errors import ModelError
from ebm_encode.loading.model import weight_files


@pytest.fixture
def hashed(monkeypatch):
    """Counts how often a file is read in full."""
    count = []

    class Counting:
        AUTO = blake3.blake3.AUTO

        def __new__(cls, **options):
            count.append(1)
            return blake3.blake3(**options)

    monkeypatch.setattr(digests, "blake3", SimpleNamespace(blake3=Counting))
    return count


def test_a_digest_is_blake3_of_the_content_and_computed_once(tmp_path, hashed):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(3_000_000))
    expected = f"blake3:{blake3.blake3(file.read_bytes()).hexdigest()}"
    assert [digests.digest_file(file) for _ in range(3)] == [expected] * 3
    assert len(hashed) == 1


def test_a_changed_file_is_hashed_again_even_with_its_old_size_and_time(tmp_path, hashed):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 1000)
    before, times = digests.digest_file(file), file.stat()
    file.write_bytes(b"b" * 1000)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digests.digest_file(file) != before
    assert len(hashed) == 2


def test_a_memory_that_cannot_be_used_only_costs_time(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    expected = digests.digest_file(file)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert digests.digest_file(file) == expected


def test_names_count_and_order_does_not(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    files = [tmp_path / "a", tmp_path / "b"]
    assert digests.digest_files(files) == digests.digest_files(files[::-1])
    assert digests.digest_json({"x": 1, "y": 2}) == digests.digest_json({"y": 2, "x": 1})
    assert digests.digest_json({"x": 1}) != digests.digest_json({"x": "1"})


def test_the_weight_files_are_those_that_are_loaded(tmp_path):
    with pytest.raises(ModelError, match=r"neither model\.safetensors"):
        weight_files(tmp_path)
    index = {"weight_map": {"w": "m-2.safetensors", "v": "m-1.safetensors", "u": "m-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "consolidated.safetensors").touch()
    with pytest.raises(ModelError, match=r"names m-1\.safetensors, m-2"):
        weight_files(tmp_path)
    for shard in ("m-1.safetensors", "m-2.safetensors"):
        (tmp_path / shard).touch()
    names = [file.name for file in weight_files(tmp_path)]
    assert names == ["m-1.safetensors", "m-2.safetensors"]
