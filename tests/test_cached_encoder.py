"""`CachedEncoder` in a Python host: embeddings by reference, merged requests, failures by state."""

import gc
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from typing import ClassVar

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode._core import CachedEncoder, CacheWriter
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.errors import ArgumentError, IdentityMismatchError
from ebm_encode.reports import RowReport
from matrix import first


class Stand:
    """An encoder without a model: the embedding of a state is made of its bytes."""

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


def test_embeddings_are_the_callers_own(stand):
    encoder = CachedEncoder(stand)
    rows = encoder.encode(["a", "b", "a"])
    assert [row.tolist() for row in rows] == [
        pytest.approx(stand.row(state), rel=1e-6) for state in ("a", "b", "a")
    ]
    assert stand.calls == [["a", "b"]], "equal states are encoded once"
    # What one caller does with its embeddings, no other sees.
    rows[0] /= 2
    torch.from_numpy(rows[1]).zero_()
    for state, row in zip(("a", "b"), encoder.encode(["a", "b"]), strict=True):
        assert row.tolist() == pytest.approx(stand.row(state), rel=1e-6)
    assert encoder.get("b").tolist() == pytest.approx(stand.row("b"), rel=1e-6)
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


def test_embeddings_of_a_cache_are_the_callers_own(stand, tmp_path, identity):
    writer = CacheWriter(tmp_path / "c.parquet")
    writer.open(identity(), 8)
    writer.append(["a"], np.arange(8, dtype=np.float32)[None, :])
    writer.finish({})
    cache = EmbeddingCache.open(tmp_path / "c.parquet")
    encoder = CachedEncoder(stand, cache)
    row = encoder.encode(["a"])[0]
    torch.from_numpy(row).zero_()
    assert encoder.get("a").tolist() == list(range(8))
    row = encoder.encode(["a"])[0]
    assert stand.calls == []
    encoder.finish({})
    del encoder, cache
    gc.collect()
    assert row.tolist() == list(range(8))


def test_a_cache_of_another_encoder_is_refused(tmp_path, identity, rows):
    writer = CacheWriter(tmp_path / "c.parquet")
    writer.open(identity(pooling="last"), 8)
    writer.append(["a"], rows(1, 8))
    writer.finish({})
    cache = EmbeddingCache.open(tmp_path / "c.parquet")
    with pytest.raises(IdentityMismatchError, match=r"pooling \(last here, mean there\)"):
        CachedEncoder(Stand(identity()), cache)
    CachedEncoder(Stand(identity()), cache, allow_other_identity=True).encode(["a"])


def test_what_has_no_embedding_says_why_and_the_rest_has_one(stand):
    encoder = CachedEncoder(stand)
    fine, long, raising, also = encoder.encode(["a", "long", "raise", "b"])
    assert fine.shape == also.shape == (8,)
    assert (long.kind, raising.kind) == ("too_long", "error")
    assert raising.reason == "LookupError: not this one"
    assert "in encode_into" in raising.traceback
    assert long.traceback is None
    assert "too_long" in repr(long)


def test_many_threads_get_each_its_own_embeddings(stand):
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


class Keeping(Stand):
    """Keeps the array, as a traceback in a variable does, and writes to it in the next call."""

    def encode_into(self, states, out):
        for array in self.kept:
            array[:] = -1
        reports = super().encode_into(states, out)
        try:
            {}["a variable holds the frame, and the frame the array"]
        except KeyError as error:
            self.last = error
        self.kept.append(out)
        return reports

    kept: ClassVar = []


def test_an_encoder_may_keep_the_array_it_is_given(identity):
    stand = Keeping(identity())
    encoder = CachedEncoder(stand)
    rows = encoder.encode(["a", "b"])
    encoder.encode(["c"])
    for states, found in ((["a", "b"], rows), (["a", "b", "c"], encoder.encode(["a", "b", "c"]))):
        for state, row in zip(states, found, strict=True):
            assert row.tolist() == pytest.approx(stand.row(state), rel=1e-6)
    assert len(stand.calls) == 2


def test_an_array_of_another_shape_afterwards_is_an_error(identity):
    class Reshaping(Stand):
        def encode_into(self, states, out):
            reports = super().encode_into(states, out)
            out.resize((1, 3), refcheck=False)
            return reports

    (answer,) = CachedEncoder(Reshaping(identity())).encode(["a"])
    assert answer.kind == "error"
    assert "shape [1, 8]" in answer.reason


def test_an_embedding_that_is_bad_or_not_written_is_none(identity):
    class Careless(Stand):
        def encode_into(self, states, out):
            reports = super().encode_into(states, out)
            for row, state in zip(out, states, strict=True):
                match state:
                    case "zero":
                        row[:] = 0
                    case "nan":
                        row[5] = np.nan
                    case "copied":
                        row[:] = self.row("a")
            return reports

    encoder = CachedEncoder(Careless(identity()))
    assert encoder.encode(["a"])[0].shape == (8,)
    for _ in range(2):
        zero, nan, copied, fine = encoder.encode(["zero", "nan", "copied", "b"])
        assert fine.shape == (8,)
        assert [answer.kind for answer in (zero, nan, copied)] == ["bad"] * 3
        assert "column 5" in nan.reason
        assert "another state" in copied.reason
        assert encoder.get("copied") is None
    assert encoder.statistics()["bad"] >= 3


def test_that_a_prompt_was_cut_is_reported(llama):
    encoder = CachedEncoder(Encoder.load(llama, max_length=8, overlong="truncate"))
    long = ["n m k : ℕ\nh : n < m\n⊢ n < m + 1", "n m k : ℕ\nh : n < m\n⊢ n < m + 2"]
    reported = encoder.encode_reported(["⊢ a", *long])
    assert [(row.shape, truncated) for row, _, truncated, _ in reported] == [
        ((encoder.dim,), False), ((encoder.dim,), True), ((encoder.dim,), True),
    ]  # fmt: skip
    assert all(tokens > 8 for _, tokens, *_ in reported[1:])
    assert reported[0][3] != reported[1][3] == reported[2][3]
    assert (reported[1][0] == reported[2][0]).all(), "the same tokens are left of both"
    assert encoder.statistics()["truncated"] == 2


def test_prompts_cut_to_the_same_tokens_are_appended(llama, tmp_path):
    path = tmp_path / "new.parquet"
    encoder = CachedEncoder(Encoder.load(llama, max_length=8, overlong="truncate"), append_to=path)
    encoder.encode([f"n m k : ℕ\nh : n < m\n⊢ n < m + {i}" for i in range(5)])
    assert encoder.finish({}) == 5
    assert len(EmbeddingCache.open(path)) == 5


# A host process: interrupts, its end, forks.


def run_host(code, *arguments, **options):
    """Runs a host in its own process; `Slow` encodes for as long as it is told to."""
    prelude = """
        import os, signal, sys, threading, time
        import numpy as np
        from ebm_encode._core import CachedEncoder, EmbeddingCache, Identity
        from ebm_encode.reports import RowReport
        class Slow:
            dim, seconds, begun = 8, 0.0, threading.Event()
            identity = Identity.from_json(sys.argv[1])
            def encode_into(self, states, out):
                self.begun.set()
                time.sleep(self.seconds)
                for row, state in zip(out, states, strict=True):
                    row[:] = np.frombuffer(state.encode().ljust(8, b"~")[:8], np.uint8)
                return [RowReport("ok", len(state)) for state in states]
        slow = Slow()
    """
    program = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=240, **options,
    )  # fmt: skip


def test_ctrl_c_ends_the_wait_for_a_batch(identity):
    done = run_host(
        """
        encoder = CachedEncoder(slow)
        slow.seconds = 20
        def interrupt():
            slow.begun.wait()
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        began = time.monotonic()
        try:
            encoder.encode(["a"])
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - began < 10, flush=True)
            os._exit(0)
        """,
        identity().to_json(),
    )
    assert done.stdout == "interrupted True\n", done.stderr


def test_ctrl_c_ends_the_opening_of_a_cache_in_a_store_that_does_not_answer(identity):
    done = run_host(
        """
        import socket
        silent = socket.create_server(("127.0.0.1", 0))
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_REGION": "x",
            "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        }
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        try:
            EmbeddingCache.open("s3://bucket/states.parquet")
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - began < 10, flush=True)
            os._exit(0)
        """,
        identity().to_json(),
    )
    assert done.stdout == "interrupted True\n", done.stderr


@pytest.mark.parametrize("how", first(["", "del encoder", "sys.exit(3)", "raise SystemExit(3)"]))
def test_a_host_may_end_while_the_encoder_is_at_work(identity, tmp_path, how):
    path = tmp_path / "new.parquet"
    done = run_host(
        f"""
        encoder = CachedEncoder(slow, append_to={str(path)!r})
        encoder.encode(["a", "b"])
        slow.seconds, slow.begun = 1, threading.Event()
        threading.Thread(target=lambda: encoder.encode(["c"]), daemon=True).start()
        slow.begun.wait()
        {how}
        """,
        identity().to_json(),
    )
    assert done.returncode == (3 if "3" in how else 0), done.stderr
    assert "Fatal" not in done.stderr
    writer = CacheWriter(path)
    writer.open(identity(), 8)
    assert len(writer) >= 2, "what was encoded is saved"


@pytest.mark.parametrize("end", first(["os._exit(0)", "sys.exit(0)"]))
def test_a_forked_process_is_refused_at_once(identity, tmp_path, end):
    path = tmp_path / "new.parquet"
    done = run_host(
        f"""
        encoder = CachedEncoder(slow, append_to={str(path)!r})
        first = encoder.encode(["a"])[0]
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            assert (encoder.get("a") == first).all(), "what is known needs no thread"
            try:
                encoder.encode(["b"])
            except Exception as error:
                assert "hint: make the encoder in the forked process" in str(error), error
                own = CachedEncoder(slow)
                assert own.encode(["b"])[0].shape == (8,)
                del encoder, own
                {end}
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert encoder.encode(["b"])[0].shape == (8,)
        print(code, encoder.finish({{}}))
        """,
        identity().to_json(),
    )
    assert done.stdout == "0 2\n", done.stderr


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


def test_a_real_encoder_gives_its_embeddings(llama, states):
    encoder = Encoder.load(llama)
    right = encoder.encode(states[:50])
    found = np.stack(CachedEncoder(encoder).encode(states[:50]))
    assert np.abs(found - right).max() / np.abs(right).max() <= 1e-5


# What is allocated on the way.


def test_no_copy_of_the_embeddings_is_made(make_model):
    """Neither by numpy nor by torch: embeddings are many times larger than anything else here."""
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
def test_embeddings_from_a_device_go_to_their_slots(places):
    found = torch.arange(float(len(places)))[:, None] + torch.zeros(4)
    target = np.full((8, 4), -1, np.float32)
    assert OutputSlots(target, places).start_copy(found) is None
    for i, place in enumerate(places):
        assert (target[place] == i).all()
    assert (np.delete(target, places, axis=0) == -1).all()


def test_slots_that_are_not_given_memory_have_their_own():
    slots = OutputSlots.new(3, 5)
    for i, slot in enumerate(slots.select([2, 0]).tensors):
        slot.fill_(i)
    assert Pass(slots).done
    assert (slots.array[[2, 0]] == [[0], [1]]).all()
