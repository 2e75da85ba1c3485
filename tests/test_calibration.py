"""How large batches are: searched for on a device, kept by a run that is resumed.

A made-up device has made-up rates: with it, only the search among sizes is tested. What is measured
is tested on this machine, where no particular rate can be expected.
"""

import json
import time

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, Encoder, _core
from ebm_encode.bulk.run import note_of
from ebm_encode.engines import calibration, output, pooling
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import PASSES, calibrate
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.engines.padded import pool_padded
from ebm_encode.engines.reference import compare
from ebm_encode.engines.runner import Runner
from ebm_encode.engines.tuning import settings_of
from ebm_encode.errors import ArgumentError
from ebm_encode.prompts.tokens import Tokens
from test_parity import unbatched


class _Device:
    """An engine on a device whose speed and memory are known, and a clock for it."""

    def __init__(self, budget, *, fixed=0.0, per_token=1e-5, holds=np.inf, told=np.inf):
        self.budget, self.now = budget, 0.0
        self.fixed, self.per_token, self.holds, self.told = fixed, per_token, holds, told
        self.passes, self.most, self.tokens = [], 0, np.inf

    def plan(self, tokens):
        return [range(i, min(i + self.each, len(tokens))) for i in range(0, len(tokens), self.each)]

    @property
    def each(self):
        return max(self.budget.tokens // 64, 1)

    def size(self, sequences):
        return sum(map(len, sequences))

    def forward(self, sequences, slots):
        size = self.size(sequences)
        self.passes.append(size)
        assert len(slots.places) == len(sequences)
        if size > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.most = size
        return Pass(slots, lambda: self.work(size))

    def work(self, size):
        self.now += self.fixed + size * self.per_token

    def seconds(self, work):
        before = self.now
        work()
        return self.now - before

    def free(self):
        return self.told * 100

    def start(self):
        self.most = 0

    def taken(self):
        return self.most * 100 if np.isfinite(self.told) else 0.0


SEQUENCES = Tokens.of([np.arange(64, dtype=np.uint32)] * 4096)  # 262,144 tokens


@pytest.fixture
def found():
    def run(tokens=SEQUENCES, **speed):
        budget = Budget()
        device = _Device(budget, **speed)
        result = calibrate(device, budget, tokens, dim=4, meter=device)
        assert budget.tokens == result.tokens
        return result, device

    return run


def test_the_search_goes_up_while_a_made_up_device_gains(found):
    result, device = found(fixed=1.0)
    assert result.tokens == 131_072
    assert list(result.rates) == [4096, 8192, 16_384, 32_768, 65_536, 131_072]
    assert max(device.passes) == 131_072


def test_the_search_ends_where_a_made_up_device_gains_nothing(found):
    result, _ = found()
    assert (result.tokens, list(result.rates)) == (16_384, [4096, 8192, 16_384])
    assert result.rates[8192] == pytest.approx(1e5)


def test_a_single_slow_size_does_not_end_the_search(found, monkeypatch):
    forward = _Device.forward

    def hiccup(device, sequences, slots):
        device.per_token = 3e-5 if device.size(sequences) == 8192 else 1e-5
        return forward(device, sequences, slots)

    monkeypatch.setattr(_Device, "forward", hiccup)
    result, _ = found(fixed=1.0)
    assert result.tokens == 131_072


def test_one_slow_pass_of_a_size_does_not_count(found, monkeypatch):
    work, passes = _Device.work, []

    def hiccup(device, size):
        passes.append(size)
        work(device, size)
        if passes.count(size) == 2:
            device.now += 100.0

    monkeypatch.setattr(_Device, "work", hiccup)
    result, _ = found(fixed=1.0)
    assert result.rates[4096] == pytest.approx(4096 / (1.0 + 4096e-5))
    assert passes.count(4096) == 1 + PASSES


def test_the_search_takes_no_size_at_which_a_made_up_device_is_slower():
    budget = Budget()
    device = _Device(budget)
    right = device.forward

    def crawls(sequences, slots):
        device.per_token = 1e-5 if len(sequences) <= 64 else 2e-5
        return right(sequences, slots)

    device.forward = crawls
    assert calibrate(device, budget, SEQUENCES, dim=4, meter=device).tokens == 4096


def test_the_search_ends_where_the_memory_of_a_made_up_device_does(found):
    assert found(fixed=1.0, holds=40_000)[0].tokens == 32_768
    result, device = found(fixed=1.0, told=50_000)  # 0.8 of it hold 40,000 tokens
    assert result.tokens == 32_768
    assert max(device.passes) == 32_768


def test_other_faults_are_not_taken_for_a_lack_of_memory(found, monkeypatch):
    def broken(*_):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(_Device, "forward", broken)
    with pytest.raises(RuntimeError, match="assert"):
        found()
    budget = Budget(500)
    with pytest.raises(RuntimeError, match="assert"):
        calibrate(_Device(budget), budget, SEQUENCES, dim=4, meter=_Device(budget))
    assert budget.tokens == 500


def test_few_sequences_change_nothing(found):
    assert found(SEQUENCES.select([]))[0].rates == {}
    result, device = found(SEQUENCES.select(range(50)), fixed=1.0)
    assert (result.tokens, result.rates, device.passes) == (8192, {}, [])


def test_the_search_on_a_slow_made_up_device_is_short(found):
    result, _ = found(fixed=100.0)
    assert list(result.rates) == [4096]


def test_the_real_engine_is_measured(make_model, states, heard, monkeypatch):
    """On a CPU there is nothing to find, but it goes the same way."""
    monkeypatch.setattr(calibration, "SIZES", (500, 1000, 2000))
    heard.set_level("INFO", "ebm_encode")
    encoder = Encoder.load(make_model("llama"))
    tokens = encoder.prompts.tokenize(states)
    assert not encoder.calibrate(tokens)
    encoder.tuning.wanted = True
    assert encoder.calibrate(tokens)
    assert encoder.budget.tokens in {500, 1000, 2000}
    assert "tokens/s" in heard.text
    folder = encoder.model.name
    assert compare(encoder.encode(states), unbatched(folder, states))[0] <= 1e-5


def test_rates_are_of_passes_that_were_run(make_model, states, monkeypatch):
    """Each size is measured by real passes of a real model, on a clock that only advances."""
    monkeypatch.setattr(calibration, "SIZES", (500, 1000, 2000))
    encoder = Encoder.load(make_model("llama"))
    tokens, engine = encoder.prompts.tokenize(states), encoder.choice.engine
    passes, forward = [], engine.forward

    def counted(sequences, slots):
        passes.append(engine.size(sequences))
        return forward(sequences, slots)

    monkeypatch.setattr(engine, "forward", counted)
    start = time.perf_counter()
    found = calibrate(
        engine, encoder.budget, tokens, dim=encoder.dim, meter=Meter(torch.device("cpu"))
    )
    took = time.perf_counter() - start
    assert found.tokens in found.rates
    assert set(found.rates) <= {500, 1000, 2000}
    assert max(passes) <= 2000
    # What went through cannot have taken longer than all of it did.
    assert all(min(passes) / took < rate for rate in found.rates.values())
    assert all(np.isfinite(rate) for rate in found.rates.values())


def test_who_says_how_many_is_not_measured(llama):
    assert not Encoder.load(llama, max_batch_tokens=500).tuning.wanted
    budget = Encoder.load(llama, max_batch_tokens=64_000).budget
    assert (budget.tokens, budget.sequences) == (64_000, 2000)
    assert Encoder.load(llama, max_batch_tokens=500).budget.sequences == 256
    assert Encoder.load(llama, batch_size=3).budget.sequences == 3
    for wrong in ({"max_batch_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(ArgumentError, match="at least 1"):
            Encoder.load(llama, **wrong)


def test_memory_of_what_tells_nothing():
    meter = Meter(torch.device("cpu"))
    meter.start()
    assert (meter.free(), meter.taken(), meter.share_for_paths()) == (np.inf, 0.0, None)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    """What one test measures is not kept for the next."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def on_a_device(monkeypatch):
    """Encoders want to be calibrated."""
    init = Encoder.__init__

    def as_on_a_device(self, *arguments, **options):
        init(self, *arguments, **options)
        self.tuning.wanted = True

    monkeypatch.setattr(Encoder, "__init__", as_on_a_device)


@pytest.mark.usefixtures("on_a_device")
def test_a_resumed_run_has_the_batches_of_the_run_before(
    run_cli, llama, states, tmp_path, monkeypatch
):
    """Measured again they could differ, and then the embeddings would by rounding."""
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text("".join(json.dumps({"state_pp": s}) + "\n" for s in states))
    measured = iter([700, 3000, 3000])

    class Found(calibration.Calibration):
        def __init__(self):
            super().__init__(next(measured), {700: 1.0})

    def measure(_engine, budget, *_, **__):
        result = Found()
        budget.tokens = result.tokens
        return result

    monkeypatch.setattr("ebm_encode.engines.tuning.calibrate", measure)
    arguments = ["encode", "--model-path", llama, "--trajectories", source, "--output", output]
    run = Runner.run_all

    def stopped(self, *arguments, **options):
        batches = run(self, *arguments, **options)
        yield next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run_all", stopped)
    assert run_cli(*arguments, "--checkpoint-rows", 1)[0] == 130
    partial = tmp_path / "o.parquet.partial"
    noted = json.loads((partial / "settings.jsonl").read_text())
    assert (noted["max_batch_tokens"], noted["compiled"]) == (700, False)
    monkeypatch.setattr(Runner, "run_all", run)
    assert run_cli(*arguments, "--json")[0] == 0
    assert not partial.exists()
    assert next(measured) == 3000  # it was asked once only
    batches = EmbeddingCache.open(output).provenance[0]["batches"]
    assert (batches["max_batch_tokens"], batches["batch_size"]) == (700, 256)


@pytest.mark.usefixtures("on_a_device")
def test_a_run_goes_on_where_nothing_can_be_measured(run_cli, llama, states, tmp_path, monkeypatch):
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text("".join(json.dumps({"state_pp": s}) + "\n" for s in states[:40]))

    def failing(*_, **__):
        raise RuntimeError("no such counter")

    monkeypatch.setattr("ebm_encode.engines.tuning.calibrate", failing)
    arguments = ["encode", "--model-path", llama, "--trajectories", source, "--output", output]
    code, _, err = run_cli(*arguments)
    assert code == 0
    assert "sizes are not calibrated: RuntimeError: no such counter" in " ".join(err.split())
    batches = EmbeddingCache.open(output).provenance[0]["batches"]
    assert (batches["max_batch_tokens"], batches["tokens_per_second"]) == (8192, {})


def test_settings_that_cannot_be_read_are_measured_again():
    good = {
        "engine": "packed", "max_batch_tokens": 5, "compiled": True, "request_engine": None,
        "rate": 1.5, "tried_compiled": False,
    }  # fmt: skip
    assert settings_of(note_of(json.dumps(good).encode() + b"\n")) == good
    wrong = (
        {"max_batch_tokens": "x"}, {"max_batch_tokens": 0}, {"compiled": 1}, {"engine": None},
        {"max_batch_tokens": 10**30}, {"max_batch_tokens": True},
        {"rate": "fast"}, {"request_engine": 1}, {"tried_compiled": None},
    )  # fmt: skip
    for change in wrong:
        assert settings_of(good | change) is None
    for name in good:
        assert settings_of({key: value for key, value in good.items() if key != name}) is None
    for note in (None, b"", b"{", b"[]", b"1"):
        assert note_of(note) is None
    assert settings_of(None) is None


@pytest.fixture
def trie(llama):
    """Makes the trie of some texts' tokens."""
    prompts = Encoder.load(llama).prompts

    def make(texts):
        tokens = prompts.tokenize(texts)
        return _core.Trie(tokens.ids, tokens.offsets)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_embeddings_are_pooled_alike_on_a_device_and_here(trie, states, pool, dtype, monkeypatch):
    """What a GPU does by segments equals the walk along each path."""
    monkeypatch.setattr(pooling, "SEQUENCES", 50)
    monkeypatch.setattr(pooling, "NODES", 300)
    nodes = trie(sorted(states)[:120])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(nodes.ids), 8, generator=generator).to(dtype)
    here = OutputSlots.new(120, 8)
    pooling.pool_on_cpu(hidden, nodes, pool, here)
    there = pooling.pool_by_segments(hidden, nodes, pool)
    assert there.dtype == torch.float32
    assert compare(there.numpy(), here.array)[0] <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padded_states_are_pooled_alike_on_a_device_and_here(pool, dtype):
    """Whatever stands at padding."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 9, 8, generator=generator).to(dtype)
    lengths = [9, 1, 4, 7, 2]
    for states, length in zip(hidden, lengths, strict=True):
        states[length:] = torch.nan
    found = pool_padded(hidden, torch.tensor(lengths), pool)
    for row, states, length in zip(found, hidden, lengths, strict=True):
        own = states[:length].double()
        right = own[-1] if pool == "last" else own.mean(dim=0)
        assert torch.allclose(row.double(), right, rtol=1e-6, atol=1e-7)


def test_what_is_not_finite_stays_on_its_paths(trie):
    """Matmuls with zeros would carry it to the embeddings of all others."""
    nodes = trie(["a b", "a c", "d"])
    hidden = torch.ones(len(nodes.ids), 4)
    hidden[int(nodes.leaves[1])] = torch.inf
    found = pooling.pool_by_segments(hidden, nodes, "mean")
    assert found.isfinite().all(dim=1).tolist() == [True, False, True]
    assert (found[[0, 2]] == 1).all()


def test_embeddings_of_a_gpu_are_written_after_the_pass(monkeypatch):
    """The array becomes a tensor in inference mode, and may be written only in that mode."""
    waited = []
    monkeypatch.setattr(output, "copies_in_background", lambda _: True)
    copying = lambda block: (block.clone(), lambda: waited.append(1))  # noqa: E731
    monkeypatch.setattr(output, "copy_to_pinned", copying)
    slots = OutputSlots.new(4, 3).select([2, 0])
    slots.array[:] = 0
    with torch.inference_mode():
        under_way = Pass(slots, slots.start_copy(torch.tensor([[1.0] * 3, [2.0] * 3])))
    assert not under_way.done
    under_way.wait()
    assert under_way.done
    assert (waited, slots.array[:, 0].tolist()) == ([1], [2.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)  # fmt: skip
def test_what_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("device-side assert"))


def test_a_broken_device_has_no_say_in_freeing_memory(monkeypatch):
    def broken():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "empty_cache", broken)
    free_memory()
