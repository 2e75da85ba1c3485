"""Nobody can change the embeddings that others read; caches are mappings and can be pickled."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, MappedCache
from ebm_encode._core import CachedEncoder
from ebm_encode.errors import CacheFormatError
from ebm_encode.reports import RowReport

STATES = [f"⊢ {i} = {i}" for i in range(6)]
BOTH = pytest.mark.parametrize("opener", [EmbeddingCache, MappedCache])

WRITES = """
import sys, warnings, torch
from ebm_encode import EmbeddingCache
warnings.simplefilter("ignore")
cache = EmbeddingCache.open(sys.argv[1])
before = cache.gather(cache.states())
lent = {"matrix": cache.matrix, "row": lambda: cache[cache.states()[0]]}[sys.argv[2]]()
torch.from_numpy(lent).div_(2)
assert (cache.gather(cache.states()) == before).all(), "the cache was changed"
print("went on with a right cache")
"""


class Stand:
    """An encoder whose embeddings are the lengths of the states."""

    dim = 8

    def __init__(self, identity):
        self.identity = identity

    def encode_into(self, states, out):
        for state, row in zip(states, out, strict=True):
            row[:] = np.arange(1, 9) * len(state)
        return [RowReport("ok", 1) for _ in states]


@pytest.fixture
def path(tmp_path, write_cache, rows):
    return write_cache(tmp_path / "cache.parquet", STATES, rows(len(STATES), 8))


@pytest.mark.parametrize("lent", ["matrix", "row"])
def test_a_write_through_torch_never_changes_a_cache_unseen(path, lent):
    done = subprocess.run(
        [sys.executable, "-c", WRITES, path, lent], capture_output=True, text=True, check=False
    )
    went_on = done.returncode == 0 and "went on with a right cache" in done.stdout
    assert went_on or done.returncode < 0, done.stderr


def test_embeddings_of_an_encoder_are_the_caller_s_own(path, identity):
    with_cache = CachedEncoder(Stand(identity()), EmbeddingCache.open(path))
    for states in ([STATES[0]], ["new", "other"]):
        first = with_cache.encode(states)
        before = [row.copy() for row in first]
        for row in first:
            torch.from_numpy(row).zero_()
        again = [with_cache.encode(states), [with_cache.get(state) for state in states]]
        for rows in again:
            assert all((row == right).all() for row, right in zip(rows, before, strict=True))


@BOTH
def test_a_cache_is_a_mapping(path, opener):
    cache = opener.open(path)
    assert isinstance(cache, Mapping)
    assert list(cache) == list(cache.keys()) == cache.states() == STATES
    as_dict = dict(cache)
    assert list(as_dict) == STATES
    assert all((as_dict[state] == cache[state]).all() for state in STATES)
    assert [state for state, _ in cache.items()] == STATES
    assert np.array_equal(list(cache.values()), cache.gather(STATES))
    assert len(cache.items()) == len(STATES)


@BOTH
def test_a_cache_is_pickled_by_its_path(path, opener, write_cache, rows, monkeypatch):
    monkeypatch.chdir(path.parent)
    cache = opener.open(path.name)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 2000
    monkeypatch.chdir("/")
    for other in (pickle.loads(pickled), copy.copy(opener.open(path))):
        assert type(other) is opener
        assert (other.gather(STATES) == rows(len(STATES), 8)).all()
    path.unlink()
    write_cache(path, STATES[:2], rows(2, 8))
    with pytest.raises(CacheFormatError, match=r"when it was pickled 6 of 8.*\nhint: "):
        pickle.loads(pickled)
