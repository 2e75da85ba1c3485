"""What an engine is compared for with the reference, before and while it is used."""

import numpy as np
import pytest
import torch

from ebm_encode import Encoder, _core
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.padded import UnbatchedEngine
from ebm_encode.engines.reference import Reference, compare, deviation, embeddings_agree
from ebm_encode.engines.selection import default_engines
from ebm_encode.engines.trie import even_cuts
from ebm_encode.errors import EncodingError
from ebm_encode.prompts.tokens import Tokens
from matrix import first, pairs
from plain_trie import PlainTrie
from support import compare_everything, compared_up_to
from test_parity import unbatched


@pytest.mark.parametrize(("std", "dtype"), pairs([0.06, 0.1], ["float32", "bfloat16"]))
def test_neighbours_that_mix_otherwise_than_by_attention_are_found(make_model, states, dtype, std):
    """A short convolution gets the first tokens of a branch wrong; a long mean hides that."""
    layers = ["conv", "conv", "full_attention"] * 2
    folder = make_model("lfm2", num_hidden_layers=6, layer_types=layers, std=std)
    encoder = Encoder.load(folder, dtype=dtype, template="deepseek-prover-v2")
    assert encoder.choice.engine.name == "padded", encoder.choice.reason
    some = sorted(states)[100:120]
    one = Encoder.load(folder, dtype=dtype, template="deepseek-prover-v2", engine="unbatched")
    error, cosine = compare(encoder.encode(some), one.encode(some))
    assert error <= 1e-5 if dtype == "float32" else cosine >= 0.99999


def test_a_model_that_counts_the_tokens_of_a_pass_is_found(make_model, states, heard):
    """Llama 4 scales some queries by a token's place in the pass, which is its place in a sequence
    only at batch size 1. So embeddings are right in small passes and wrong in large ones."""
    changes = {"floor_scale": 300, "no_rope_layers": [1, 0, 1], "attention_chunk_size": 8192}
    folder = make_model("llama4_text", std=0.2, **changes)
    encoder = Encoder.load(folder)
    lengths = encoder.prompts.tokenize(states).lengths
    some = [state for state, length in zip(states, lengths, strict=True) if length <= 160]
    some.sort(key=len)
    encoder.encode(some[-1:])  # from here on no length is new
    assert encoder.choice.engine.name == "shared-prefix"
    assert compare(encoder.encode(some[-60:]), unbatched(folder, some[-60:]))[0] <= 1e-5
    assert encoder.choice.engine.name == "padded"
    assert "from now on" in heard.text
    for name in ("shared-prefix", "packed"):
        assert f"{name} differs from" in encoder.choice.reason


def overflow(monkeypatch, reference, when):
    """Lets the embedding of some sequences be infinite at batch size 1."""
    forward, states = reference.forward, reference.states

    def overflowing(sequences, slots):
        arrival = forward(sequences, slots)
        if when(sequences[0]):
            slots.slot(0)[:] = np.inf
        return arrival

    def overflowing_states(sequences, slots, wanted):
        found = states(sequences, slots, wanted)
        if when(sequences[0]):
            slots.slot(0)[:] = np.inf
        return found

    monkeypatch.setattr(reference, "forward", overflowing)
    monkeypatch.setattr(reference, "states", overflowing_states)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("nodes", [1, 30, 100, None])
def test_the_last_token_of_a_pass_is_one_of_the_sequence_given(llama, states, share, nodes):
    name = "shared-prefix" if share else "packed"
    encoder = Encoder.load(llama, engine=name)
    engine, tokens = encoder.choice.engine, encoder.prompts.tokenize(sorted(states)[100:130])
    engine.chunk_nodes = nodes
    for count in (1, 2, 7, 30):
        sequences = [tokens[i] for i in range(count)]
        both = Tokens.of(sequences)
        trie = _core.Trie(both.ids, both.offsets, share=share)
        cuts = even_cuts(len(trie.ids), nodes or len(trie.ids))
        sizes = [own.stop - own.start for own in cuts]
        assert (
            engine.tokens_per_forward(engine.size(sequences)) == max(sizes) <= (nodes or sum(sizes))
        )
        last = cuts[sizes.index(max(sizes))].stop - 1
        node, path = int(trie.leaves[engine.last_packed_index(sequences)]), []
        while node >= 0:
            path.append(node)
            node = int(trie.parents[node])
        assert last in path


def test_a_failed_reference_proves_nothing(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    lengths = encoder.prompts.tokenize(states).lengths
    longest, limit = int(lengths.max()), int(np.sort(lengths)[len(states) // 2])
    engine = encoder.choice.engine
    forward = engine.forward

    def wrong_beyond_the_limit(sequences, slots):
        arrival = forward(sequences, slots)
        long = [k for k, sequence in enumerate(sequences) if len(sequence) > limit]
        slots.array[slots.select(long).places] *= np.float32(1.01)
        return arrival

    monkeypatch.setattr(engine, "forward", wrong_beyond_the_limit)
    overflow(
        monkeypatch, encoder.selection.unbatched.engine, lambda sequence: len(sequence) == longest
    )
    compared_up_to(encoder, limit, 10_000)
    out = np.empty((len(states), encoder.dim), np.float32)
    reports = encoder.encode_into(states, out)
    refused = np.array([report.status == "bad" for report in reports])
    assert (lengths[refused] == longest).all()
    assert refused.any()
    assert compare(out[~refused], right[~refused])[0] <= 1e-5
    assert encoder.choice.engine is not engine


def test_an_embedding_made_unbatched_for_want_of_memory_proves_nothing(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    lengths = encoder.prompts.tokenize(states).lengths
    longest, limit = int(lengths.max()), int(np.sort(lengths)[len(states) // 2])
    engine = encoder.choice.engine
    forward = engine.forward

    def wrong_beyond_the_limit(sequences, slots):
        if max(map(len, sequences)) == longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        arrival = forward(sequences, slots)
        long = [k for k, sequence in enumerate(sequences) if len(sequence) > limit]
        slots.array[slots.select(long).places] *= np.float32(1.01)
        return arrival

    monkeypatch.setattr(engine, "forward", wrong_beyond_the_limit)
    compared_up_to(encoder, limit, 10_000)
    assert compare(encoder.encode(states), right)[0] <= 1e-5
    assert encoder.choice.engine is not engine


@pytest.mark.parametrize("at", first(["hidden states", "roundings"]))
def test_no_memory_to_compare_hidden_states_ends_no_call(llama, states, monkeypatch, heard, at):
    encoder = Encoder.load(llama, dtype="bfloat16")
    right = encoder.encode(states)
    engine, reference = encoder.choice.engine, encoder.selection.unbatched.reference

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def none_for_roundings(sequence, seed=None):
        if seed is not None:
            raise EncodingError("out of memory at batch size 1")
        return reference(sequence)

    if at == "hidden states":
        monkeypatch.setattr(engine, "states", no_memory)
    else:  # which are only asked for where a token is off
        found = engine.states

        def one_token_off(*given):
            states, *others = found(*given)
            change = 0.1 * states[0]
            states = states - change / (len(states) - 1)
            states[0] += change + change / (len(states) - 1)
            return [states, *others]

        monkeypatch.setattr(engine, "states", one_token_off)
        monkeypatch.setattr(encoder.selection.unbatched, "reference", none_for_roundings)
    compare_everything(encoder)
    assert compare(encoder.encode(states), right)[1] > 0.9995
    assert encoder.choice.engine is engine
    assert "no memory to compare hidden states" in heard.text


def test_where_the_last_of_a_pass_overflows_the_one_before_is_compared(llama, states, monkeypatch):
    encoder = Encoder.load(llama)
    right = encoder.encode(states)
    engine = encoder.choice.engine
    forward = engine.forward
    last = []

    def wrong_at_the_end(sequences, slots):
        arrival = forward(sequences, slots)
        ends = sorted({len(sequence) for sequence in sequences})
        late = range(len(sequences) - 5, len(sequences))
        inner = [k for k in late if ends[0] < len(sequences[k]) < ends[-1]]
        slots.array[slots.select(inner).places] *= np.float32(1.01)
        last[:] = [sequences[engine.last_packed_index(sequences)].tobytes()]
        return arrival

    monkeypatch.setattr(engine, "chunk_nodes", None)
    monkeypatch.setattr(engine, "forward", wrong_at_the_end)
    overflow(
        monkeypatch, encoder.selection.unbatched.engine, lambda sequence: sequence.tobytes() in last
    )
    compared_up_to(encoder, 10_000, 0)
    out = np.empty((len(states), encoder.dim), np.float32)
    reports = encoder.encode_into(states, out)
    good = [i for i, report in enumerate(reports) if report.status == "ok"]
    assert len(states) - 8 <= len(good) < len(states)
    assert compare(out[good], right[good])[0] <= 1e-5
    assert encoder.choice.engine is not engine


def test_probes_that_overflow_say_nothing_of_the_engine(llama, states, monkeypatch, heard):
    right = Encoder.load(llama).encode(states[:9])
    run = UnbatchedEngine.states
    longest = []

    def overflowing(self, sequences, slots, wanted):
        states = run(self, sequences, slots, wanted)
        longest.append(max(map(len, sequences)))
        if longest[-1] > 80:
            slots.array[slots.places] = np.inf
        return states

    monkeypatch.setattr(UnbatchedEngine, "states", overflowing)
    encoder = Encoder.load(llama)
    assert max(longest) > 80, "a probe does overflow"
    assert encoder.choice.engine.name == "shared-prefix"
    assert "1 of " in heard.text
    assert "have no finite embedding even unbatched" in heard.text
    monkeypatch.undo()
    assert compare(encoder.encode(states[:9]), right)[0] <= 1e-5


def test_the_next_engine_is_tried_on_all_probes(llama, states):
    """Not only on those that the one before failed on, of which one is not enough to branch."""

    def broken(model, pooling, layer, budget):
        first = PlainTrie(model, budget, "scaled", only_in_use=True)
        second = PlainTrie(model, budget, "blind_to_parent")
        return [first, second, *default_engines(model, pooling, layer, budget)[1:]]

    encoder = Encoder.load(llama, engines=broken)
    assert encoder.choice.engine.name == "plain-trie scaled"
    longest = max(states, key=len)
    found = encoder.encode([longest])
    assert encoder.choice.engine.name == "packed"
    assert "plain-trie blind_to_parent differs" in encoder.choice.reason
    assert compare(found, unbatched(llama, [longest]))[0] <= 1e-5


def noise(dtype, bound=0.01):
    return NoiseFloor(dtype, bound / 2, bound)


def test_only_16_bits_are_compared_by_their_direction():
    assert not embeddings_agree(1e-3, 1.0, noise("float32", 1e-5))
    assert embeddings_agree(1e-6, 1.0, noise("float32", 1e-5))
    for dtype in ("float16", "bfloat16"):
        assert embeddings_agree(1e-3, 0.9999, noise(dtype))
        assert not embeddings_agree(1e-3, 0.999, noise(dtype))
        assert not embeddings_agree(float("nan"), float("nan"), noise(dtype))
    assert not embeddings_agree(float("nan"), float("nan"), noise("float32"))


@pytest.fixture
def random_states():
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((n, 8)).astype(np.float32) for n in (3, 40)]
    return states, Reference(states, np.stack([own.mean(axis=0) for own in states]))


def never(_):
    raise AssertionError("nothing is beyond the bound")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wrong_token_among_many_is_found_unless_rounding_makes_it(random_states, dtype):
    states, reference = random_states
    wrong = [states[0], states[1].copy()]
    wrong[1][7] *= 1.05
    rows = np.stack([own.mean(axis=0) for own in wrong])
    options = {"pooling": "mean", "noise": noise(dtype, 0.01)}
    assert deviation(reference.embeddings, states, reference, unstable=never, **options).exact
    asked = []

    def unstable(i, tokens=()):
        asked.append(i)
        return np.isin(np.arange(40), tokens)

    assert not deviation(rows, wrong, reference, unstable=unstable, **options).exact
    assert asked == [1]
    found = deviation(rows, wrong, reference, unstable=lambda i: unstable(i, [7]), **options)
    assert found.exact
    assert found.token_error == pytest.approx(0.05, rel=1e-3)
    assert not deviation(
        rows, wrong, reference, unstable=lambda i: unstable(i, [6]), **options
    ).exact


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_that_is_not_the_pooled_states_is_found(random_states, dtype, pooling):
    states, reference = random_states
    last = np.stack([own[-1] for own in states])
    rows = reference.embeddings if pooling == "mean" else last
    truth = Reference(states, rows)
    options = {"pooling": pooling, "noise": noise(dtype), "unstable": never}
    assert deviation(rows, states, truth, **options).exact
    for wrong in (rows * np.float32(1.001), rows[::-1], np.full_like(rows, np.nan)):
        assert not deviation(np.ascontiguousarray(wrong), states, truth, **options).exact


def test_a_state_that_is_not_finite_is_never_exact(random_states):
    states, reference = random_states
    wrong = [states[0], states[1].copy()]
    wrong[1][3, 2] = np.nan
    found = deviation(
        reference.embeddings,
        wrong,
        reference,
        pooling="mean",
        noise=noise("bfloat16"),
        unstable=lambda _: np.zeros(40, bool),
    )
    assert not found.exact
    assert found.token_error == np.inf


def test_one_unstable_token_of_a_short_sequence_refuses_no_engine():
    states = [np.eye(3, 8, dtype=np.float32)]
    reference = Reference(states, states[0].mean(axis=0)[None])
    moved = [states[0].copy()]
    moved[0][1, 5] = 0.05
    rows = moved[0].mean(axis=0)[None]
    for dtype in ("float32", "bfloat16"):
        for unstable, exact in ((1, True), (2, False)):
            found = deviation(
                rows,
                moved,
                reference,
                pooling="mean",
                noise=noise(dtype),
                unstable=lambda _, token=unstable: np.arange(3) == token,
            )
            assert found.exact == exact, dtype
