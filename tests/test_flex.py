"""FlexAttention over a trie: the same embeddings for every kind of mask, and no pair too many.

torch has no kernel for such masks on a CPU, and makes the scores of all pairs there. So what is
shown here is which pairs are seen, and that nothing is compiled anew for other lengths; that the
kernel computes what this does is for a GPU to show (`benchmarks/gpu`).
"""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

import tiny_model
from ebm_encode import Encoder, _core
from ebm_encode.engines import compiled, flex
from ebm_encode.engines.block_masks import BLOCK, TrieLayout, block_mask
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.output import OutputSlots
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ModelError
from ebm_encode.prompts.tokens import Tokens
from matrix import thorough
from test_parity import unbatched

NAME = "shared-prefix-flex"
WITHOUT_INTERFACE = ("falcon", "gptj", "mpt", "bloom", "mamba", "mamba2")
PLUGGED = [name for name in tiny_model.ARCHITECTURES if name not in WITHOUT_INTERFACE]


@pytest.fixture(scope="module")
def family(states):
    """Some that share much, one stranger, one that is the beginning of another."""
    by_text = sorted(states)
    some = [*by_text[100:108], by_text[0]]
    return list(dict.fromkeys([*some, some[3][:40]]))


@pytest.mark.parametrize("architecture", PLUGGED)
def test_every_mask_gives_the_embeddings_of_batch_size_1(make_model, family, architecture):
    """Sliding windows, chunks, soft caps, sinks, latent attention, grouped heads, experts."""
    folder = make_model(architecture)
    encoder = Encoder.load(folder, engine=NAME)
    assert encoder.choice.engine.name == NAME
    assert compare(encoder.encode(family), unbatched(folder, family))[0] <= 1e-5


@pytest.mark.parametrize("architecture", WITHOUT_INTERFACE)
def test_models_without_an_attention_interface_are_refused(make_model, architecture):
    with pytest.raises(ModelError, match=f"`engine` {NAME}: cannot be used for this model"):
        Encoder.load(make_model(architecture), engine=NAME)


def test_no_auto_on_a_cpu_takes_it(llama):
    names = [own.name for own in Encoder.load(llama).choice.alternatives]
    assert NAME not in names
    assert names


MASKS = {
    "causal": (causal_mask_function, None),
    "window": (sliding_window_causal_mask_function(7), 7),
    "wide window": (sliding_window_causal_mask_function(300), 300),
    # A bound that is told and a function that knows of none.
    "untold window": (sliding_window_causal_mask_function(5), None),
    "chunks": (chunked_causal_mask_function(6, torch.zeros(1, dtype=torch.long)), 6),
}


@pytest.mark.parametrize("kind", MASKS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_blocks_show_each_node_its_own_path_through_the_models_mask(kind, data):
    sequences = data.draw(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=90), min_size=1, max_size=12)
    )
    long = data.draw(st.integers(0, 2)) * BLOCK  # beginnings that fill blocks
    prefix = np.arange(10, 10 + long, dtype=np.uint32)
    arrays = [np.concatenate([prefix, np.array(own, np.uint32)]) for own in sequences]
    tokens = Tokens.of(sorted(arrays, key=lambda own: own.tolist()))
    trie = _core.Trie(tokens.ids, tokens.offsets)
    function, window = MASKS[kind]
    layout = TrieLayout.of(trie, torch.device("cpu"))
    found = pairs(block_mask(layout, function, window))
    assert np.array_equal(found, on_paths(trie, layout.length, function))


def pairs(mask):
    """Which pairs a block mask lets a kernel see, (length, length)."""
    length = mask.seq_lengths[0]
    seen = np.zeros((length, length), bool)
    each = torch.arange(length)
    zero = torch.zeros(1, dtype=torch.long)
    asked = mask.mask_mod(zero, zero, each[:, None], each[None, :]).numpy()
    lists = ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
    for whole, (counts, which) in enumerate(lists):
        for row, count in enumerate(counts[0, 0].tolist()):
            for column in which[0, 0, row, :count].tolist():
                here = np.s_[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
                assert not seen[here].any(), "no block is listed twice"
                seen[here] = True if whole else asked[here]
    return seen


def on_paths(trie, length, function):
    """The same by walking from each node to its root; padding sees itself."""
    seen = np.eye(length, dtype=bool)
    seen[: len(trie.ids)] = False
    for node in range(len(trie.ids)):
        path, at = [], node
        while at >= 0:
            path.append(at)
            at = int(trie.parents[at])
        depths = torch.from_numpy(trie.depths[path])
        zero = torch.zeros(1, dtype=torch.long)
        allowed = function(zero, zero, torch.tensor([trie.depths[node]]), depths)
        seen[node, path] = allowed.numpy()
    return seen


def test_far_branches_are_skipped():
    """Work goes by blocks with a pair on a path, not by the square of the nodes."""
    sequences = [np.full(4 * BLOCK, i, np.uint32) for i in range(16)]  # nothing shared
    tokens = Tokens.of(sequences)
    layout = TrieLayout.of(_core.Trie(tokens.ids, tokens.offsets), torch.device("cpu"))
    mask = block_mask(layout, causal_mask_function, None)
    listed = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert listed == 16 * (1 + 2 + 3 + 4)
    assert int(mask.full_kv_num_blocks.sum()) == 16 * (0 + 1 + 2 + 3)  # pairs need no question
    narrow = block_mask(layout, sliding_window_causal_mask_function(BLOCK), BLOCK)
    listed = int(narrow.kv_num_blocks.sum() + narrow.full_kv_num_blocks.sum())
    assert listed == 16 * (1 + 2 + 2 + 2)


@pytest.fixture
def graphs(monkeypatch, tmp_path):
    """The graphs that torch traces; the last step of its compiler is skipped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    made = []

    def backend(graph, _inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(flex, "BACKEND", backend)
    yield made
    torch.compiler.reset()


@pytest.mark.parametrize("architecture", ["gemma2", *thorough("llama")])
def test_a_kernel_serves_all_lengths(make_model, states, graphs, monkeypatch, architecture):
    """One graph for the first length and one for all others, of each kind of layer."""
    encoder = Encoder.load(make_model(architecture), engine=NAME)
    monkeypatch.setattr(flex, "has_kernel", lambda _: True)
    some = sorted(states)
    encoder.encode(some[:4])
    encoder.encode(some[20:40])
    first = len(graphs)
    kinds = 2 if architecture == "gemma2" else 1
    assert 0 < first <= 2 * kinds
    for count in (1, 8, 12, 16, 30):
        encoder.encode(some[50 : 50 + count])
    assert len(graphs) == first


@pytest.mark.parametrize("architecture", ["gpt_oss", *thorough("llama", "gemma2")])
def test_attention_is_compiled_with_the_layers(make_model, family, states, graphs, architecture):
    """No break in the graph: one for each kind of layer and length, none for attention alone."""
    folder = make_model(architecture)
    encoder = Encoder.load(folder, engine=NAME, compile_layers="on")
    assert encoder.selection.compiled
    assert compare(encoder.encode(family), unbatched(folder, family))[0] <= 1e-5
    encoder.encode(sorted(states)[20:40])
    targets = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("flex_attention" in target for target in targets)
    before = len(graphs)
    for count in (1, 8, 12, 16):
        encoder.encode(sorted(states)[50 : 50 + count])
    assert len(graphs) == before


def test_many_models_in_a_process_share_no_limit(make_model, family, graphs, monkeypatch):
    """torch gives up compiling a function after eight kinds of arguments, if it is not told."""
    monkeypatch.setattr(flex, "has_kernel", lambda _: True)
    for count in range(12):
        folder = make_model("llama", num_attention_heads=4, head_dim=8 + 2 * count)
        encoder = Encoder.load(folder, engine=NAME)
        assert encoder.choice.engine.name == NAME, encoder.choice.reason
    assert len(graphs) >= 12
    assert compare(encoder.encode(family), unbatched(folder, family))[0] <= 1e-5


def test_what_is_not_finite_stays_on_its_path(llama, states):
    """A kernel works on blocks, in which strangers stand side by side."""
    encoder = Encoder.load(llama, engine=NAME)
    tokens = encoder.prompts.tokenize(sorted(states)[:12])
    texts_with = Counter(int(token) for own in tokens for token in np.unique(own))
    rare = next(token for token, count in texts_with.items() if count == 1)

    def spoil(_module, inputs, output):
        return output.masked_fill((inputs[0] == rare)[..., None], torch.nan)

    by_runs = PrefixEngine(encoder.model, "mean", -1, Budget())
    found = []
    with encoder.model.base.get_input_embeddings().register_forward_hook(spoil):
        for engine in (encoder.choice.engine, by_runs):
            slots = OutputSlots.new(12, encoder.dim)
            engine.forward([*tokens], slots).wait()
            found.append(slots.array)
    finite = np.isfinite(found[1]).all(axis=1)
    assert finite.sum() == 11
    assert np.array_equal(np.isfinite(found[0]).all(axis=1), finite)
    assert compare(found[0][finite], found[1][finite])[0] <= 1e-5
