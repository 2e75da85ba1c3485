"""`CachedEncoder` in a Python host: rows by reference, callers together, failures by row."""

import gc
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode._core import CachedEncoder, CacheWriter
from ebm_encode.encoder import RowReport
from ebm_encode.engines.rows import Rows, bring_over
from ebm_encode.errors import ArgumentError, IdentityMismatchError


class Stand:
    """An encoder without a model: the row of a state is made of its bytes."""

    def __init__(self, identity, dim=8):
        self.identity, self.dim = identity, dim
        self.calls, self.addresses, self.hold = [], [], threading.Event()
        self.hold.set()

    def row(self, state):
        return np.frombuffer(state.encode().ljust(self.dim, b"~")[: self.dim], np.uint8) / 7

    def encode_into(self, states, out):
        self.hold.wait()
        self.calls.append(list(states))
        self.addresses.append(out.ctypes.data)
        if "raise" in states:
            raise LookupError("not this one")
        for row, state in zip(out, states, strict=True):
            row[:] = self.row(state)
        long = RowReport("overlong", 99, reason="too long")
        return [long if state == "long" else RowReport("ok", len(state)) for state in states]


@pytest.fixture
def stand(identity):
    return Stand(identity())


def test_rows_are_copies_of_what_python_wrote(stand):
    encoder = CachedEncoder(stand)
    rows = encoder.encode(["a", "b", "a"])
    assert [row.tolist() for row in rows] == [
        pytest.approx(stand.row(state), rel=1e-6) for state in ("a", "b", "a")
    ]
    assert stand.calls == [["a", "b"]], "equal states are encoded once"
    assert all(row.flags.owndata and row.flags.writeable for row in rows)
    rows[0][:] = 0
    assert encoder.get("a").tolist() == rows[2].tolist()
    del encoder
    gc.collect()
    assert rows[2].tolist() == pytest.approx(stand.row("a"), rel=1e-6)


def test_known_states_are_not_encoded_again_and_counted(stand):
    encoder = CachedEncoder(stand)
    encoder.encode(["a", "b"])
    encoder.encode(["b", "c"])
    assert stand.calls == [["a", "b"], ["c"]]
    assert encoder.get("c") is not None
    assert encoder.get("d") is None
    statistics = encoder.statistics()
    assert statistics["states"] == 4
    assert statistics["encoded"] == 3
    assert 0 < statistics["p50"] <= statistics["p99"] < 10


def test_rows_of_a_cache_are_copies_that_outlive_it(stand, tmp_path, identity):
    writer = CacheWriter(tmp_path / "c.parquet")
    writer.open(identity(), 8)
    writer.append(["a"], np.arange(8, dtype=np.float32)[None, :])
    writer.finish({})
    cache = EmbeddingCache.open(tmp_path / "c.parquet")
    encoder = CachedEncoder(stand, cache)
    row = encoder.encode(["a"])[0]
    assert row.flags.owndata
    assert row.ctypes.data != cache["a"].ctypes.data
    assert stand.calls == []
    encoder.finish({})
    del encoder, cache
    gc.collect()
    assert row.tolist() == list(range(8)), "the array keeps the cache"


def test_a_cache_of_another_encoder_is_refused(tmp_path, identity, rows):
    writer = CacheWriter(tmp_path / "c.parquet")
    writer.open(identity(pooling="last"), 8)
    writer.append(["a"], rows(1, 8))
    writer.finish({})
    cache = EmbeddingCache.open(tmp_path / "c.parquet")
    with pytest.raises(IdentityMismatchError, match=r"pooling \(last here, mean there\)"):
        CachedEncoder(Stand(identity()), cache)
    CachedEncoder(Stand(identity()), cache, allow_other_identity=True).encode(["a"])


def test_what_has_no_row_says_why_and_the_rest_has_one(stand):
    encoder = CachedEncoder(stand)
    fine, long, raising, also = encoder.encode(["a", "long", "raise", "b"])
    assert fine.shape == also.shape == (8,)
    assert (long.kind, raising.kind) == ("too_long", "error")
    assert raising.reason == "LookupError: not this one"
    assert "in encode_into" in raising.traceback
    assert long.traceback is None
    assert "too_long" in repr(long)


def test_many_threads_get_each_its_own_rows(stand):
    encoder = CachedEncoder(stand, memory_bytes=3000)
    wrong = []

    def ask(thread):
        for i in range(200):
            states = [f"{thread % 5}-{i % 11}-{k}" for k in range(i % 4)]
            for state, row in zip(states, encoder.encode(states), strict=True):
                if not np.allclose(row, stand.row(state), rtol=1e-6):
                    wrong.append(state)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert encoder.statistics()["requests"] == 16 * 200


def test_waiting_has_an_end(stand):
    encoder = CachedEncoder(stand)
    stand.hold.clear()
    with pytest.raises(TimeoutError):
        encoder.encode(["a"], timeout=0.05)
    stand.hold.set()
    assert encoder.encode(["a"])[0].shape == (8,)


def test_it_can_be_let_go_while_it_is_at_work(stand):
    encoder = CachedEncoder(stand)
    stand.hold.clear()
    with pytest.raises(TimeoutError):
        encoder.encode(["a"], timeout=0.05)
    threading.Timer(0.2, stand.hold.set).start()
    began = time.monotonic()
    del encoder
    gc.collect()
    assert time.monotonic() - began < 60, "its thread could go on in the meantime"


def test_an_encoder_that_keeps_the_array_ends_the_process(identity):
    """Anything else could write into memory that is used for other things by then."""
    code = f"""
import numpy as np
from ebm_encode._core import CachedEncoder, Identity
from ebm_encode.encoder import RowReport
class Keeping:
    dim, identity = 8, Identity.from_json({identity().to_json()!r})
    def encode_into(self, states, out):
        out[:] = 1
        self.kept = out[1:]
        return [RowReport("ok", 1)] * len(states)
CachedEncoder(Keeping()).encode(["a", "b"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGABRT
    assert "encode_into kept the array it was given" in result.stderr


def test_what_is_encoded_is_appended(stand, tmp_path):
    path = tmp_path / "new.parquet"
    encoder = CachedEncoder(stand, append_to=path)
    encoder.encode(["a", "b", "long"])
    encoder.checkpoint()
    assert encoder.finish({"by": "a test"}) == 2
    cache = EmbeddingCache.open(path)
    assert sorted(cache.states()) == ["a", "b"]
    assert cache.provenance == [{"by": "a test"}]
    with pytest.raises(ArgumentError, match="finished"):
        encoder.encode(["c"])


def test_what_is_appended_to_a_folder_is_there_for_others_at_each_commit(stand, tmp_path):
    encoder = CachedEncoder(stand, append_to=tmp_path)
    encoder.encode(["a", "b"])
    assert encoder.commit({"so": "far"}) == 2
    assert sorted(EmbeddingCache.open(tmp_path).states()) == ["a", "b"]
    encoder.encode(["b", "c"])
    assert encoder.commit({}) == 3
    assert np.allclose(EmbeddingCache.open(tmp_path)["c"], stand.row("c"))
    assert encoder.finish({}) == 3
    assert CachedEncoder(stand).commit({}) is None


def test_options_without_meaning_are_refused(stand):
    for options in ({"max_states": 0}, {"max_wait": -1.0}, {"queue": 0}):
        with pytest.raises(ArgumentError):
            CachedEncoder(stand, **options)
    with pytest.raises(AttributeError, match="dim"):
        CachedEncoder(object())


def test_a_real_encoder_gives_its_rows(llama, states):
    encoder = Encoder.load(llama)
    right = encoder.encode(states[:50])
    rows = np.stack(CachedEncoder(encoder).encode(states[:50]))
    assert np.abs(rows - right).max() / np.abs(right).max() <= 1e-5


# What is allocated on the way.


def test_no_copy_of_the_rows_is_made(make_model):
    """Neither by numpy nor by torch: rows are many times larger than anything else here."""
    encoder = Encoder.load(
        make_model("llama", hidden_size=2048, intermediate_size=64, num_hidden_layers=1)
    )
    states = [f"⊢ {chr(97 + i)}" for i in range(24)]
    out = np.zeros((len(states), encoder.dim), np.float32)
    encoder.encode_into(states, out)
    assert encoder.choice.engine.name == "shared-prefix"
    tracemalloc.start()
    with torch.profiler.profile(profile_memory=True) as profile:
        encoder.encode_into(states, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < out.nbytes, "numpy reports its memory to tracemalloc"
    sizes = [event.cpu_memory_usage for event in profile.events() if event.name == "[memory]"]
    assert sizes, "torch reports its memory to the profiler"
    assert out.nbytes not in sizes


@pytest.mark.parametrize("places", [[2, 0, 1], [5, 3, 4], [7, 1, 4], [6]])
def test_rows_from_a_device_go_to_their_places(places):
    rows = torch.arange(float(len(places)))[:, None] + torch.zeros(4)
    target = np.full((8, 4), -1, np.float32)
    bring_over(rows, torch.from_numpy(target), places)
    for i, place in enumerate(places):
        assert (target[place] == i).all()
    assert (np.delete(target, places, axis=0) == -1).all()


def test_rows_that_are_not_given_memory_have_their_own():
    rows = Rows.new(3, 5)
    landing = rows.select([2, 0]).landing(torch.device("cpu"))
    for i, target in enumerate(landing.targets):
        target.fill_(i)
    assert landing.depart().here
    assert (rows.array[[2, 0]] == [[0], [1]]).all()
