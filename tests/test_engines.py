"""Engines: what goes through the model, and which one is taken for which model."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny_model
from ebm_encode import Encoder
from ebm_encode.engines import attention, flex, kernel, masks, padding_masks, prefix, trie, varlen
from ebm_encode.engines.reference import compare
from ebm_encode.engines.selection import default_engines
from ebm_encode.errors import ArgumentError, ModelError
from ebm_encode.options import EngineName
from matrix import first, pairs
from plain_trie import Scaled
from support import compare_nothing
from test_parity import unbatched

NAMES = ["shared-prefix", "shared-prefix-flex", "packed", "padded", "unbatched"]
# Attention that no function can be plugged into, and models that cannot share prefixes at all.
EXPECTED = dict.fromkeys(tiny_model.ARCHITECTURES, "shared-prefix")
EXPECTED |= dict.fromkeys(["falcon", "gptj", "mpt", "bloom", "mamba", "mamba2"], "padded")


@pytest.fixture(scope="module")
def mixed(states):
    """Neighbours that share much, strangers, one long, one the beginning of another, two alike."""
    by_text, by_length = sorted(states), sorted(states, key=len)
    some = [*by_text[100:140], by_length[-1], *by_length[:5]]
    return list(dict.fromkeys([*some, some[3][:40], some[3][:-1]]))


@pytest.fixture
def through():
    """Counts the tokens that go through a model's layers."""
    counted = []

    def count(encoder):
        embedding = encoder.model.base.get_input_embeddings()
        embedding.register_forward_hook(lambda _m, _i, out: counted.append(out[..., 0].numel()))
        return counted

    return count


@pytest.mark.parametrize("architecture", EXPECTED)
def test_every_architecture_gets_the_best_exact_engine(make_model, mixed, architecture):
    folder = make_model(architecture)
    encoder = Encoder.load(folder)
    assert encoder.choice.engine.name == EXPECTED[architecture], encoder.choice.reason
    assert compare(encoder.encode(mixed), unbatched(folder, mixed))[0] <= 1e-5
    assert encoder.choice.engine.name == EXPECTED[architecture], encoder.choice.reason


@pytest.mark.parametrize("name", NAMES)
def test_any_engine_can_be_forced(llama, mixed, name):
    encoder = Encoder.load(llama, engine=name)
    assert encoder.choice.engine.name == name
    some = mixed if name != "shared-prefix-flex" else mixed[:12]  # slow on a CPU; test_flex.py
    assert compare(encoder.encode(some), unbatched(llama, some))[0] <= 1e-5


@pytest.mark.parametrize("architecture", first(EXPECTED, 8))
def test_masks_that_are_always_made_change_nothing(make_model, mixed, architecture):
    """As on a device, where the host must not wait for the answer whether one hides anything."""
    folder = make_model(architecture)
    encoder = Encoder.load(folder, engine="padded", max_batch_tokens=2000)
    compare_nothing(encoder)
    with padding_masks.making_masks():
        assert compare(encoder.encode(mixed[:20]), unbatched(folder, mixed[:20]))[0] <= 1e-5


def test_attention_that_says_itself_what_it_sees_is_refused(llama):
    """Sparse attention: its blocks would be dropped, which short texts do not show."""
    model = Encoder.load(llama).model
    part = torch.zeros(1, 2, 4, 8)
    for function in (attention.path_attention, flex.trie_attention):
        with pytest.raises(masks.UnsupportedAttentionError, match="block_indices"):
            function(model.base, part, part, part, None, block_indices=torch.zeros(1))


def test_the_names_of_engines_are_the_documented_ones():
    assert [*EngineName.__args__] == ["auto", *NAMES]


def test_former_names_of_engines(llama, run_cli, tmp_path):
    assert Encoder.load(llama, engine="alone").choice.engine.name == "unbatched"
    with pytest.raises(ArgumentError, match=r"engine 'shared-prefix-mask'.*\nhint: .*padded"):
        Encoder.load(llama, engine="shared-prefix-mask")
    source, output = tmp_path / "s.jsonl", tmp_path / "o.parquet"
    source.write_text('{"state_pp": "⊢ a"}\n')
    arguments = ["encode", "--model-path", llama, "--trajectories", source, "--output", output]
    code, out, _ = run_cli(*arguments, "--engine", "alone", "--json")
    assert (code, json.loads(out)["engine"]["name"]) == (0, "unbatched")
    code, _, err = run_cli(*arguments, "--engine", "shared-prefix-mask")
    assert code == 2
    assert "--engine" in err
    assert "padded" in err


@pytest.mark.parametrize("name", ["shared-prefix", "packed"])
def test_a_forced_engine_that_is_wrong_is_an_error(make_model, name):
    with pytest.raises(ModelError, match=f"`engine` {name}: cannot be used"):
        Encoder.load(make_model("mamba2"), engine=name)
    with pytest.raises(ArgumentError, match="engine 'fast'"):
        Encoder.load(make_model("mamba2"), engine="fast")


@pytest.mark.parametrize(("tokens", "rows"), pairs([1, 50, 300, 100_000], [1, 7, 1000]))
def test_the_size_of_packed_batches_changes_nothing(llama, mixed, tokens, rows):
    encoder = Encoder.load(llama, engine="shared-prefix", max_batch_tokens=tokens, batch_size=rows)
    assert compare(encoder.encode(mixed), unbatched(llama, mixed))[0] <= 1e-5
    backward = encoder.encode(mixed[::-1])[::-1]
    assert compare(backward, encoder.encode(mixed))[0] <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "nodes"),
    pairs(["llama", "mistral", "llama4_text", "gemma2", "gpt_oss", "deepseek_v3"], [7, 200]),
)
def test_the_size_of_chunks_changes_nothing(make_model, mixed, monkeypatch, architecture, nodes):
    monkeypatch.setattr(prefix, "CHUNK_NODES", nodes)
    folder = make_model(architecture)
    encoder = Encoder.load(folder, engine="shared-prefix")
    assert compare(encoder.encode(mixed), unbatched(folder, mixed))[0] <= 1e-5


def test_a_self_test_carries_a_path_from_chunk_to_chunk(llama, monkeypatch):
    def forget(_, key, value, paths):
        shapes = ((part.shape[1], paths.before, part.shape[3]) for part in (key, value))
        return tuple(torch.zeros(shape) for shape in shapes)

    monkeypatch.setattr(trie.CarriedKeys, "exchange", forget)
    with pytest.raises(ModelError, match="`engine` shared-prefix: cannot be used"):
        Encoder.load(llama, engine="shared-prefix")


def test_masks_that_are_not_kept_are_made_again(make_model, mixed, monkeypatch):
    monkeypatch.setattr(masks, "MOST_KEPT", 5000)
    monkeypatch.setattr(kernel, "usable", lambda *_: False)
    folder = make_model("mistral")
    embeddings = Encoder.load(folder, engine="shared-prefix").encode(mixed)
    assert compare(embeddings, unbatched(folder, mixed))[0] <= 1e-5


@pytest.mark.parametrize("name", ["shared-prefix", "packed"])
@pytest.mark.parametrize("options", [{"pooling": "last"}, {"layer": -2}, {"layer": 0}])
def test_pooling_and_layers(llama, mixed, name, options):
    encoder = Encoder.load(llama, engine=name, **options)
    assert compare(encoder.encode(mixed), unbatched(llama, mixed, **options))[0] <= 1e-5


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    pairs(["llama", "gemma2", "gpt_oss", "mistral"], ["bfloat16", "float16"]),
)
def test_16_bit_embeddings_are_as_near_to_the_truth_as_the_reference(
    make_model, mixed, architecture, dtype
):
    folder = make_model(architecture)
    encoder = Encoder.load(folder, dtype=dtype)
    assert encoder.choice.engine.name == "shared-prefix"
    ours, truth = encoder.encode(mixed), unbatched(folder, mixed)
    reference = unbatched(folder, mixed, dtype=getattr(torch, dtype))
    assert compare(ours, reference)[1] >= 0.9995
    distance = np.linalg.norm(ours - truth, axis=1).mean()
    assert distance <= 1.2 * np.linalg.norm(reference - truth, axis=1).mean()


def test_every_shared_prefix_goes_through_the_model_once(llama, states, through):
    encoder = Encoder.load(llama)
    counted = through(encoder)
    compare_nothing(encoder)
    encoder.encode(states)
    sequences = encoder.prompts.tokenize(states)
    prefixes = {
        sequences[i][:n].tobytes()
        for i in range(len(states))
        for n in range(1, len(sequences[i]) + 1)
    }
    windows = len(counted)
    longest = int(sequences.lengths.max())
    assert len(prefixes) <= sum(counted) <= len(prefixes) + windows * longest
    assert sum(counted) < len(sequences.ids)


def test_the_children_of_a_node_cost_their_own_tokens(llama, states, through):
    encoder = Encoder.load(llama)
    counted = through(encoder)
    parent = max(states, key=len)
    children = [parent + f"\nh{i} : x{i} = {i}" for i in range(32)]
    compare_nothing(encoder)
    encoder.encode(children)
    lengths = encoder.prompts.tokenize([parent, *children]).lengths
    own = sum(lengths[1:] - lengths[0] + 2)
    assert sum(counted) <= lengths[0] + own


def test_without_sharing_every_token_goes_through_once(llama, states, through):
    encoder = Encoder.load(llama, engine="packed")
    counted = through(encoder)
    compare_nothing(encoder)
    encoder.encode(states)
    assert sum(counted) == len(encoder.prompts.tokenize(states).ids)


def test_the_model_is_left_as_it_was(llama, states, monkeypatch):
    encoder = Encoder.load(llama, engine="shared-prefix")
    config = encoder.model.base.config
    before = config._attn_implementation  # noqa: SLF001  (transformers has no other name for it)
    encoder.encode(states[:5])
    assert config._attn_implementation == before  # noqa: SLF001

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(kernel, "attend", fail)
    with pytest.raises(ModelError, match=r"shared-prefix failed .*RuntimeError: no"):
        encoder.encode(states[:5])
    assert config._attn_implementation == before  # noqa: SLF001


def test_threads_may_share_an_encoder(llama, make_model, mixed):
    encoders = [Encoder.load(llama), Encoder.load(make_model("mistral"))]
    right = [encoder.encode(mixed) for encoder in encoders]
    parts = [(k, start) for start in range(0, len(mixed), 6) for k in (0, 1, 0)]

    def encode(part):
        k, start = part
        encoder = encoders[k]
        found = encoder.encode(mixed[start : start + 6])
        return compare(found, right[k][start : start + 6])[0]

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(encode, parts)) <= 1e-5


def test_a_pass_of_an_engine_found_wrong_meanwhile_is_run_again(llama, mixed):
    """Another thread may find it wrong while a pass of it is under way."""
    encoder = Encoder.load(llama)
    right, selection, first = encoder.encode(mixed), encoder.selection, encoder.choice.engine
    forward = first.forward

    def overtaken(sequences, slots):
        under_way = forward(sequences, slots)
        slots.array[slots.places] *= np.float32(1.01)
        # Which is what the other thread has compared with its own engine.
        selection.choice = replace(selection.choice, engine=encoder.choice.alternatives[-1])
        compare_nothing(encoder)
        return under_way

    first.forward = overtaken
    compare_nothing(encoder)
    assert compare(encoder.encode(mixed), right)[0] <= 1e-5
    assert encoder.choice.engine.name == "padded"


def test_an_engine_runs_only_what_it_has_planned_itself(llama, mixed, monkeypatch):
    """Another thread may find an engine wrong between its plan and its passes."""
    encoder = Encoder.load(llama, max_batch_tokens=600)
    selection, right = encoder.selection, encoder.encode(mixed)
    first, padded = encoder.choice.engine, encoder.choice.alternatives[-1]
    planned, others = {first: [], padded: []}, []

    def watch(engine):
        plan, forward = engine.plan, engine.forward

        def planning(tokens):
            batches = plan(tokens)
            planned[engine] += [{tokens[i].tobytes() for i in batch} for batch in batches]
            if engine is first:
                selection.choice = replace(selection.choice, engine=padded)
            return batches

        def running(sequences, slots):
            if {sequence.tobytes() for sequence in sequences} not in planned[engine]:
                others.append(engine.name)
            return forward(sequences, slots)

        monkeypatch.setattr(engine, "plan", planning)
        monkeypatch.setattr(engine, "forward", running)

    watch(first)
    watch(padded)
    assert compare(encoder.encode(mixed), right)[0] <= 1e-5
    assert planned[first] != planned[padded]
    assert not others
    assert encoder.choice.engine is padded


class WrongBeyond(Scaled):
    """Its embeddings of sequences longer than a limit are off."""

    def __init__(self, engine, limit):
        super().__init__(engine, 1.0)
        self.limit = limit

    def forward(self, sequences, slots):
        under_way = self._engine.forward(sequences, slots)
        for k, sequence in enumerate(sequences):
            if len(sequence) > self.limit:
                slots.slot(k)[:] *= np.float32(1.01)
        return under_way


def test_threads_that_share_an_encoder_fall_back_together(llama, states):
    """Whichever thread finds an engine wrong, no thread gets an embedding that it made wrong."""
    right = dict(zip(states, Encoder.load(llama, engine="padded").encode(states), strict=True))

    def engines(model, pooling, layer, budget):
        first, _, second, padded = default_engines(model, pooling, layer, budget)
        return [WrongBeyond(first, 120), WrongBeyond(second, 180), padded]

    encoder = Encoder.load(llama, engines=engines, max_batch_tokens=400)
    assert encoder.choice.engine.name == "shared-prefix"
    parts = [states[start::20] for start in range(20)]

    def encode(part):
        return compare(encoder.encode(part), np.stack([right[state] for state in part]))[0]

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(encode, parts)) <= 1e-5
    assert encoder.choice.engine.name == "padded"
    for name in ("shared-prefix", "packed"):
        assert encoder.choice.reason.count(f"{name} differs from the unbatched reference") == 1


def test_an_engine_that_drifts_is_not_used(llama):
    def drifting(model, pooling, layer, budget):
        *best, padded = default_engines(model, pooling, layer, budget)
        return [*map(Scaled, best), padded]

    encoder = Encoder.load(llama, engines=drifting)
    assert encoder.choice.engine.name == "padded"
    for name in NAMES[:2]:
        assert f"{name} differs from the unbatched reference" in encoder.choice.reason


def test_where_nothing_is_exact_each_state_is_encoded_unbatched(llama, mixed):
    def drifting(model, pooling, layer, budget):
        return [*map(Scaled, default_engines(model, pooling, layer, budget))]

    encoder = Encoder.load(llama, engines=drifting)
    assert encoder.choice.engine.name == "unbatched"
    assert "batch size 1" in encoder.choice.reason
    assert compare(encoder.encode(mixed), unbatched(llama, mixed))[0] <= 1e-5


def test_what_is_wrong_only_beyond_some_length_is_found(make_model, states, monkeypatch, heard):
    """The self-test prompts are shorter than this sliding window, which is then ignored."""
    folder = make_model("mistral", sliding_window=150)
    right = unbatched(folder, states)
    of_the_model = masks.PathMask.of

    def ignoring(mask, run):
        return of_the_model(replace(mask, window=None, visible=all_before), run)

    def all_before(_batch, _head, query, key):
        return key <= query

    monkeypatch.setattr(kernel, "usable", lambda *_: False)
    assert compare(Encoder.load(folder).encode(states), right)[0] <= 1e-5
    monkeypatch.setattr(masks.PathMask, "of", ignoring)
    with pytest.raises(ModelError, match=r"`engine` shared-prefix: cannot be used.*at [0-9]+ t"):
        Encoder.load(folder, engine="shared-prefix").encode(states)
    encoder = Encoder.load(folder, max_batch_tokens=500)
    assert encoder.choice.engine.name == "shared-prefix"
    embeddings = encoder.encode(states)
    assert encoder.choice.engine.name == "padded"
    assert "from now on" in heard.text
    assert compare(embeddings, right)[0] <= 1e-5


def reference_varlen(query, key, value, query_ends, key_ends, *most, scale, window_size, **_):
    """What torch documents of its kernel: the last query of a sequence sees its last key."""
    left, right = window_size
    assert value.shape == key.shape
    assert (most, right) == ((query_ends.diff().max(), key_ends.diff().max()), 0)
    outputs = []
    for i in range(len(query_ends) - 1):
        own = query[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        seen = key[key_ends[i] : key_ends[i + 1]].transpose(0, 1)
        theirs = value[key_ends[i] : key_ends[i + 1]].transpose(0, 1)
        place = torch.arange(own.shape[1])[:, None] + seen.shape[1] - own.shape[1]
        behind = place - torch.arange(seen.shape[1])[None, :]
        mask = (behind >= 0) & ((behind <= left) | (left < 0))
        groups = own.shape[0] // seen.shape[0]
        seen, theirs = (part.repeat_interleave(groups, 0) for part in (seen, theirs))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            own, seen, theirs, mask, scale=scale
        )
        outputs.append(mixed.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [-1, 0, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_stands_for_the_kernel_is_attention_of_each_sequence(window, groups):
    """Told query by query, and by torch's own causal attention of a whole sequence."""
    draw = torch.Generator().manual_seed(0)
    lengths, new = (1, 9, 20, 20), (1, 4, 20, 1)  # keys of each sequence, and queries at its end
    heads, width, scale = 2 * groups, 8, 0.3

    def drawn(count, heads):
        return [torch.randn(n, heads, width, generator=draw, dtype=torch.float64) for n in count]

    queries, keys, values = drawn(lengths, heads), drawn(lengths, 2), drawn(lengths, 2)
    expected = []
    for query, key, value, count in zip(queries, keys, values, new, strict=True):
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))  # noqa: PLW2901
        rows = []
        for i in range(len(query)):
            seen = slice(0 if window < 0 else max(0, i - window), i + 1)
            scores = torch.einsum("hd,khd->hk", query[i], key[seen]) * scale
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value[seen]))
        if window < 0:
            whole = torch.nn.functional.scaled_dot_product_attention(
                *(part.transpose(0, 1) for part in (query, key, value)), is_causal=True, scale=scale
            )
            assert torch.allclose(torch.stack(rows), whole.transpose(0, 1))
        expected.append(torch.stack(rows)[len(rows) - count :])

    def ends(counts):
        return torch.tensor([0, *np.cumsum(counts)])

    found = reference_varlen(
        torch.cat([query[len(query) - n :] for query, n in zip(queries, new, strict=True)]),
        torch.cat(keys), torch.cat(values), ends(new), ends(lengths), max(new), max(lengths),
        scale=scale, window_size=(window, 0),
    )  # fmt: skip
    assert torch.allclose(found, torch.cat(expected))


@pytest.mark.parametrize(
    ("architecture", "slice_nodes"),
    pairs(["llama", "mistral", "gpt2", "deepseek_v3", "llama4_text"], [100, None]),
)
def test_the_layout_for_the_kernel_of_a_gpu(
    make_model, mixed, monkeypatch, architecture, slice_nodes
):
    """The kernel itself runs on a GPU only; what it is given is right for what it documents."""
    calls = []

    def kernel(*arguments, **options):
        calls.append(options["window_size"])
        return reference_varlen(*arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "usable", lambda _q, _k, _v, mask: mask.banded)
    monkeypatch.setattr(prefix, "MOST_QUERIES", 10_000)
    monkeypatch.setattr(prefix, "CHUNK_NODES", slice_nodes)
    folder = make_model(architecture)
    encoder = Encoder.load(folder, engine="shared-prefix")
    assert compare(encoder.encode(mixed), unbatched(folder, mixed))[0] <= 1e-5
    expected = {"mistral": {(23, 0)}, "llama4_text": set()}.get(architecture, {(-1, 0)})
    assert set(calls) >= expected


@pytest.mark.parametrize(
    ("architecture", "by_kernel"),
    [
        ("llama", True), ("mistral", True), ("gpt2", True), ("deepseek_v3", True),
        ("gemma2", False), ("gpt_oss", False), ("llama4_text", False),
    ],
)  # fmt: skip
def test_attention_by_the_core_and_by_torch_agree(
    make_model, mixed, monkeypatch, architecture, by_kernel
):
    encoder = Encoder.load(make_model(architecture))
    calls = []
    usable = kernel.usable

    def told(*arguments):
        calls.append(usable(*arguments))
        return calls[-1]

    monkeypatch.setattr(kernel, "usable", told)
    first = encoder.encode(mixed)
    assert any(calls) == by_kernel
    monkeypatch.setattr(kernel, "usable", lambda *_: False)
    assert compare(encoder.encode(mixed), first)[0] <= 1e-5


def test_the_summary_and_the_provenance_name_the_engine(run_cli, llama, tmp_path):
    source = tmp_path / "s.jsonl"
    source.write_text('{"state_pp": "⊢ a"}\n{"state_pp": "⊢ b"}\n')
    output = tmp_path / "o.parquet"
    arguments = ["encode", "--model-path", llama, "--trajectories", source, "--output", output]
    code, out, err = run_cli(*arguments, "--json")
    assert code == 0
    assert json.loads(out)["engine"]["name"] == "shared-prefix"
    assert json.loads(out)["engine"]["self_test_relative_error"] <= 1e-5
    assert "engine shared-prefix: matches the unbatched reference" in " ".join(err.split())
    code, out, _ = run_cli(*arguments, "--overwrite", "--engine", "packed")
    assert code == 0
    assert "packed: matches the unbatched reference" in out
    code, out, _ = run_cli("inspect", output)
    assert "packed" in out
    code, _, err = run_cli(*arguments, "--engine", "fast")
    assert code == 2
    assert "--engine" in err
