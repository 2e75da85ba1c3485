"""What an engine is compared for with sequences alone, before and while it is used."""

import numpy as np
import pytest
import torch

from ebm_encode import Encoder, _core, engines
from ebm_encode.engines import Compared, all_agree, compare, windows
from ebm_encode.engines.tolerance import agrees
from ebm_encode.tokens import Tokens
from test_parity import alone


@pytest.mark.parametrize("std", [0.06, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_that_mix_otherwise_than_by_attention_are_found(make_model, states, dtype, std):
    """A short convolution gets the first tokens of a branch wrong; a long mean hides that."""
    layers = ["conv", "conv", "full_attention"] * 2
    folder = make_model("lfm2", num_hidden_layers=6, layer_types=layers, std=std)
    encoder = Encoder.load(folder, dtype=dtype, template="deepseek-prover-v2")
    assert encoder.choice.engine.name == "padded", encoder.choice.reason
    some = sorted(states)[100:120]
    one = Encoder.load(folder, dtype=dtype, template="deepseek-prover-v2", engine="alone")
    error, cosine = compare(encoder.encode(some), one.encode(some))
    assert error <= 1e-5 if dtype == "float32" else cosine >= 0.99999


def test_a_model_that_counts_the_tokens_of_a_pass_is_found(make_model, states, heard):
    """Llama 4 scales some queries by a token's place in the pass, which is its place in a sequence
    only where that is alone. So rows are right in small passes and wrong in large ones."""
    changes = {"floor_scale": 300, "no_rope_layers": [1, 0, 1], "attention_chunk_size": 8192}
    folder = make_model("llama4_text", std=0.2, **changes)
    encoder = Encoder.load(folder)
    lengths = encoder.prompts.tokenize(states).lengths
    some = [state for state, length in zip(states, lengths, strict=True) if length <= 160]
    some.sort(key=len)
    encoder.encode(some[-1:])  # from here on no length is new
    assert encoder.choice.engine.name == "shared-prefix"
    assert compare(encoder.encode(some[-60:]), alone(folder, some[-60:]))[0] <= 1e-5
    assert encoder.choice.engine.name == "padded"
    assert "from here on" in heard.text
    for name in ("shared-prefix", "shared-prefix-mask", "packed"):
        assert f"{name} differs from" in encoder.choice.reason


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("nodes", [1, 30, 100, None])
def test_the_last_token_of_a_pass_is_one_of_the_sequence_named(llama, states, share, nodes):
    name = "shared-prefix" if share else "packed"
    encoder = Encoder.load(llama, engine=name)
    engine, tokens = encoder.choice.engine, encoder.prompts.tokenize(sorted(states)[100:130])
    engine._slice_nodes = nodes
    for count in (1, 2, 7, 30):
        sequences = [tokens[i] for i in range(count)]
        both = Tokens.of(sequences)
        trie = _core.Trie(both.ids, both.offsets, share=share)
        cuts = windows._cuts(len(trie.ids), nodes or len(trie.ids))
        sizes = [own.stop - own.start for own in cuts]
        assert engine.at_once(engine.size(sequences)) == max(sizes) <= (nodes or sum(sizes))
        last = cuts[sizes.index(max(sizes))].stop - 1
        node, path = int(trie.leaves[engine.last_at_once(sequences)]), []
        while node >= 0:
            path.append(node)
            node = int(trie.parents[node])
        assert last in path


def test_a_row_that_cannot_be_made_alone_vouches_for_nothing(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    lengths = encoder.prompts.tokenize(states).lengths
    longest, limit = int(lengths.max()), int(np.sort(lengths)[len(states) // 2])
    runner, engine = encoder.runner, encoder.choice.engine
    forward, by_itself = engine.forward, runner._alone.forward

    def wrong_beyond_the_limit(sequences, rows):
        arrival = forward(sequences, rows)
        long = [k for k, sequence in enumerate(sequences) if len(sequence) > limit]
        rows.array[rows.select(long).places] *= np.float32(1.01)
        return arrival

    def overflowing(sequences, rows):
        arrival = by_itself(sequences, rows)
        if len(sequences[0]) == longest:
            rows.row(0)[:] = np.nan
        return arrival

    monkeypatch.setattr(engine, "forward", wrong_beyond_the_limit)
    monkeypatch.setattr(runner._alone, "forward", overflowing)
    runner.selection.compared = Compared(length=limit, at_once=10_000)
    out = np.empty((len(states), encoder.dim), np.float32)
    reports = encoder.encode_into(states, out)
    refused = np.array([report.status == "bad" for report in reports])
    assert (lengths[refused] == longest).all()
    assert refused.any()
    assert compare(out[~refused], right[~refused])[0] <= 1e-5
    assert encoder.choice.engine is not engine


def test_a_row_made_alone_for_want_of_memory_vouches_for_nothing(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    lengths = encoder.prompts.tokenize(states).lengths
    longest, limit = int(lengths.max()), int(np.sort(lengths)[len(states) // 2])
    engine = encoder.choice.engine
    forward = engine.forward

    def wrong_beyond_the_limit(sequences, rows):
        if max(map(len, sequences)) == longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        arrival = forward(sequences, rows)
        long = [k for k, sequence in enumerate(sequences) if len(sequence) > limit]
        rows.array[rows.select(long).places] *= np.float32(1.01)
        return arrival

    monkeypatch.setattr(engine, "forward", wrong_beyond_the_limit)
    encoder.runner.selection.compared = Compared(length=limit, at_once=10_000)
    assert compare(encoder.encode(states), right)[0] <= 1e-5
    assert encoder.choice.engine is not engine


def test_where_the_last_of_a_pass_overflows_the_one_before_is_compared(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    engine, by_itself = encoder.choice.engine, encoder.runner._alone
    forward, single = engine.forward, by_itself.forward
    last = []

    def wrong_at_the_end(sequences, rows):
        arrival = forward(sequences, rows)
        ends = sorted({len(sequence) for sequence in sequences})
        late = range(len(sequences) - 5, len(sequences))
        inner = [k for k in late if ends[0] < len(sequences[k]) < ends[-1]]
        rows.array[rows.select(inner).places] *= np.float32(1.01)
        last[:] = [sequences[engine.last_at_once(sequences)].tobytes()]
        return arrival

    def overflowing(sequences, rows):
        arrival = single(sequences, rows)
        if sequences[0].tobytes() in last:
            rows.row(0)[:] = np.inf
        return arrival

    monkeypatch.setattr(engine, "_slice_nodes", None)
    monkeypatch.setattr(engine, "forward", wrong_at_the_end)
    monkeypatch.setattr(by_itself, "forward", overflowing)
    encoder.runner.selection.compared = Compared(length=10_000)
    out = np.empty((len(states), encoder.dim), np.float32)
    reports = encoder.encode_into(states, out)
    good = [i for i, report in enumerate(reports) if report.status == "ok"]
    assert len(states) - 8 <= len(good) < len(states)
    assert compare(out[good], right[good])[0] <= 1e-5
    assert encoder.choice.engine is not engine


@pytest.mark.parametrize("cosine", [0.999, 0.997])
def test_few_tokens_may_be_rounded_more_in_use_too(llama, states, monkeypatch, cosine):
    encoder = Encoder.load(llama, dtype="bfloat16")
    engine, forward = encoder.choice.engine, encoder.choice.engine.forward
    aside = np.sqrt(1 - cosine**2) / cosine

    def rounded(sequences, rows):
        """Turns short rows by an angle."""
        arrival = forward(sequences, rows)
        for k, sequence in enumerate(sequences):
            if len(sequence) <= 6:
                row = rows.row(k)
                other = np.roll(row, 1)
                other -= row * (other @ row) / (row @ row)
                row += other * np.float32(aside * np.linalg.norm(row) / np.linalg.norm(other))
        return arrival

    monkeypatch.setattr(engine, "forward", rounded)
    encoder.runner.selection.compared = Compared()
    some = ["h", *states[:9]]
    assert len(encoder.prompts.tokenize(some)[0]) <= 6
    encoder.encode(some)
    assert (encoder.choice.engine is engine) == (cosine > 0.998)


def test_probes_that_overflow_say_nothing_of_the_engine(llama, states, monkeypatch, heard):
    right = Encoder.load(llama).encode(states[:9])
    forward = engines.AloneEngine.forward
    longest = []

    def overflowing(self, sequences, rows):
        arrival = forward(self, sequences, rows)
        longest.append(max(map(len, sequences)))
        if self.name == "alone" and longest[-1] > 80:
            rows.array[rows.places] = np.inf
        return arrival

    monkeypatch.setattr(engines.AloneEngine, "forward", overflowing)
    encoder = Encoder.load(llama)
    assert max(longest) > 80, "a probe does overflow"
    assert encoder.choice.engine.name == "shared-prefix"
    assert "1 of " in heard.text
    assert "say nothing" in heard.text
    monkeypatch.undo()
    assert compare(encoder.encode(states[:9]), right)[0] <= 1e-5


def test_the_next_engine_is_tried_on_all_probes(llama, states, monkeypatch):
    """Not only on those that the one before failed on, of which one is not enough to branch."""
    encoder = Encoder.load(llama)
    run = engines.MaskedWindowEngine._run

    def without_branches(self, sequences, rows, slice_nodes):
        arrival = run(self, sequences, rows, slice_nodes)
        if len(sequences) > 1 and self.name == "shared-prefix-mask":
            rows.array[rows.places] *= np.float32(1.01)
        return arrival

    def wrong(sequences, rows):
        arrival = forward(sequences, rows)
        rows.array[rows.places] *= np.float32(1.01)
        return arrival

    first = encoder.choice.engine
    forward = first.forward
    monkeypatch.setattr(engines.MaskedWindowEngine, "_run", without_branches)
    monkeypatch.setattr(first, "forward", wrong)
    longest = max(states, key=len)
    row = encoder.encode([longest])
    assert encoder.choice.engine.name == "packed"
    assert compare(row, alone(llama, [longest]))[0] <= 1e-5


def test_only_16_bits_are_compared_by_their_direction():
    for dtype in ("float32", "float64"):
        assert not agrees(1e-3, 1.0, dtype)
        assert agrees(1e-6, 1.0, dtype)
    for dtype in ("float16", "bfloat16"):
        assert agrees(1e-3, 0.9999, dtype)
        assert not agrees(1e-3, 0.99, dtype)
        assert agrees(1e-2, 0.999, dtype, few=True)
        assert not agrees(1e-2, 0.999, dtype)
        assert not agrees(1e-2, 0.99, dtype, few=True)
    assert not agrees(float("nan"), float("nan"), "float32")
    assert not agrees(float("nan"), float("nan"), "float16")


def test_every_row_is_held_to_the_tolerance_of_its_length():
    truth = np.eye(2, 4, dtype=np.float32)
    near = truth.copy()
    near[:, 3] = 0.045  # a cosine of 0.999
    for dtype in ("float16", "bfloat16"):
        assert all_agree(near, truth, np.array([6, 1]), dtype)
        assert not all_agree(near, truth, np.array([6, 7]), dtype)
        assert not all_agree(near, truth, np.array([70, 80]), dtype)
        assert all_agree(truth, truth, np.array([7, 1]), dtype)
    assert not all_agree(near, truth, np.array([1, 1]), "float32")
