"""How passes follow each other: a device never waits for the host between sets of sequences."""

import json

import numpy as np
import pytest
import torch

from ebm_encode import EmbeddingCache, Encoder, _core
from ebm_encode.bulk import run as bulk_run
from ebm_encode.engines import varlen
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.memory import MemoryLimit
from ebm_encode.engines.output import Pass
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.engines.reference import compare
from ebm_encode.engines.work import Work
from ebm_encode.prompts import tokens as prompts_tokens
from support import compare_nothing
from test_parity import unbatched


class _Slow:
    """A device that works while the host goes on: passes end only when somebody waits for them."""

    def __init__(self, engine):
        self.forward, self.events, self.under_way = engine.forward, [], 0
        self.idle = 0

    def __call__(self, sequences, slots):
        started = self.forward(sequences, slots)
        self.under_way += 1
        self.events.append("start")

        def finish():
            self.events.append("end")
            self.under_way -= 1
            self.idle += self.under_way == 0

        return Pass(started.slots, finish)


@pytest.fixture
def slow(llama, monkeypatch):
    """An encoder on such a device."""
    encoder = Encoder.load(llama, max_batch_tokens=1500)
    compare_nothing(encoder)
    device = _Slow(encoder.choice.engine)
    monkeypatch.setattr(encoder.choice.engine, "forward", device)
    return encoder, device


def test_the_next_set_starts_before_the_last_pass_of_the_one_before_ends(slow, states, llama):
    encoder, device = slow
    sets = [sorted(states)[i : i + 60] for i in (0, 60, 120)]
    works = [Work(encoder.prompts.tokenize(some)) for some in sets]
    found = {id(work): np.full((60, encoder.dim), np.nan, np.float32) for work in works}
    for work, done in encoder.runner.run_all(iter(works)):
        found[id(work)][done.indices] = done.embeddings
    assert device.events.count("start") == device.events.count("end") > 3
    assert device.idle == 1, "only at the very end"
    for work, some in zip(works, sets, strict=True):
        assert compare(found[id(work)], unbatched(llama, some))[0] <= 1e-5


def test_a_bulk_run_keeps_the_device_at_work(run_cli, llama, states, tmp_path, monkeypatch):
    """Across the sets that it plans, while embeddings are checked and saved."""
    monkeypatch.setattr(bulk_run, "CHUNK_STATES", 50)
    monkeypatch.setattr(prompts_tokens, "CHUNK_STATES", 50)
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text("".join(json.dumps({"state_pp": s}) + "\n" for s in states[:300]))
    init, devices = Encoder.__init__, []

    def on_a_device(self, *arguments, **options):
        init(self, *arguments, **options)
        compare_nothing(self)
        devices.append(_Slow(self.choice.engine))
        self.choice.engine.forward = devices[-1]

    monkeypatch.setattr(Encoder, "__init__", on_a_device)
    arguments = ("--model-path", llama, "--trajectories", source, "--output", output)
    code, _, err = run_cli("encode", *arguments, "--verify-sample", 0, "--checkpoint-rows", 20)
    assert code == 0, err
    assert len(devices) == 1
    assert devices[0].events.count("start") >= 6  # one or more for each set
    assert devices[0].idle == 1
    assert len(EmbeddingCache.open(output)) == len({*states[:300]})


def test_a_failure_in_the_last_pass_of_a_set_concerns_that_set(slow, states, llama):
    """Its rest is run by the next engine, and the set that has begun goes on."""
    encoder, device = slow
    sets = [sorted(states)[i : i + 60] for i in (0, 60)]
    works = [Work(encoder.prompts.tokenize(some)) for some in sets]
    forward, begun = device.forward, []

    def failing(sequences, slots):
        begun.append(sequences)
        started = forward(sequences, slots)
        first = encoder.prompts.tokenize(sets[0])
        if len(begun) == 1 and any(np.array_equal(sequences[0], own) for own in first):

            def fail():
                raise RuntimeError("a kernel failed")

            return Pass(started.slots, fail)
        return started

    encoder.choice.engine.forward = failing
    found = {id(work): np.full((60, encoder.dim), np.nan, np.float32) for work in works}
    for work, done in encoder.runner.run_all(works):
        found[id(work)][done.indices] = done.embeddings
    assert encoder.choice.engine.name == "packed"
    for work, some in zip(works, sets, strict=True):
        assert compare(found[id(work)], unbatched(llama, some))[0] <= 1e-5


def test_sets_may_be_empty_or_unwanted(slow, states):
    encoder, _ = slow
    some = encoder.prompts.tokenize(states[:5])
    works = [Work(some.select([])), Work(some, wanted=lambda _: False), Work(some)]
    assert {id(work) for work, _ in encoder.runner.run_all(works)} == {id(works[2])}


def test_memory_that_was_short_is_tried_again():
    limit = MemoryLimit()
    assert limit.allows(10**9)
    limit.ran_out(1000)
    assert (limit.allows(999), limit.allows(1000)) == (True, False)
    tried = []
    for passes in range(200):
        if limit.allows(1500):
            tried.append(passes)
            limit.ran_out(1500)
        limit.fitted()
    # Ever more rarely, as it never fits.
    waits = np.diff([0, *tried])
    assert len(tried) >= 2
    assert (waits[1:] > waits[:-1]).all()
    limit = MemoryLimit()
    limit.ran_out(1000)
    for _ in range(100):
        limit.fitted()
    assert limit.allows(10_000)


def test_a_run_recovers_from_a_shortage_that_passes(llama, states, monkeypatch):
    """As where another program had the memory for a while."""
    encoder = Encoder.load(llama, max_batch_tokens=600)
    compare_nothing(encoder)
    engine = encoder.choice.engine
    forward, sizes = engine.forward, []

    def short_of_memory(sequences, slots):
        size = engine.size(sequences)
        if not sizes and size > 300:
            sizes.append(0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(size)
        return forward(sequences, slots)

    monkeypatch.setattr(engine, "forward", short_of_memory)
    for _ in range(3):
        encoder.encode(states)
    assert sizes.count(0) == 1
    third = len(sizes) // 3
    assert max(sizes[1:16]) < 600
    assert max(sizes[-third:]) > 500


def test_bushy_batches_are_planned_by_the_tokens_of_their_paths(llama, states, monkeypatch):
    """Where keys and values of whole paths are gathered, many children of a long state are much."""
    encoder = Encoder.load(llama, dtype="bfloat16")
    parent = max(states, key=len)
    tokens = encoder.prompts.tokenize([f"{parent}\nh{n} : True" for n in range(64)])
    monkeypatch.setattr(varlen, "has_kernel", lambda _: True)
    each = varlen.bytes_per_path_token(encoder.model)
    config = encoder.model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    assert each == 2 * heads * width * 2
    total = int(tokens.lengths.sum())
    budget = Budget(path_bytes=each * total // 4)
    plan = PrefixEngine(encoder.model, "mean", -1, budget).plan(tokens)
    assert sorted(i for batch in plan for i in batch) == [*range(64)]
    assert all(tokens.lengths[batch].sum() <= total // 4 for batch in plan)
    assert 4 <= len(plan) <= 6
    assert varlen.bytes_per_path_token(Encoder.load(llama).model) is None, "float32 gathers nothing"
    whole = PrefixEngine(encoder.model, "mean", -1, Budget()).plan(tokens)
    assert len(whole) == 1
    assert len(_core.plan_windows(tokens.ids, tokens.offsets, 8192, 256)) == 1
