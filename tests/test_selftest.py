"""Mutation tests: engines broken on purpose are refused, and unbroken ones are not.

The faults are those of `plain_trie.FAULTS`, put into an engine that enters by the encoder's own
seam, `engines`.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.engines.selection import default_engines
from ebm_encode.errors import ModelError
from matrix import thorough
from plain_trie import FAULTS, ONLY_WITH_WINDOW, PlainTrie

ARCHITECTURES = ["llama", "mistral", "gemma2", "mixtral"]
WINDOWED = {"mistral", "gemma2"}
DTYPES = ["float32", "bfloat16", "float16"]
TEMPLATES = ["raw", "deepseek-prover-v2"]
EXACT = {"shared-prefix", "packed", "padded"}


def faults_of(architecture):
    return [f for f in FAULTS if f not in ONLY_WITH_WINDOW or architecture in WINDOWED]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_broken_engines_are_refused_and_unbroken_ones_are_not(
    make_model, architecture, dtype, template
):
    faults = faults_of(architecture)

    def broken_ones_first(model, _pooling, _layer, budget):
        return [*(PlainTrie(model, budget, fault) for fault in faults), PlainTrie(model, budget)]

    folder = make_model(architecture)
    choice = Encoder.load(folder, dtype=dtype, template=template, engines=broken_ones_first).choice
    for fault in faults:
        assert f"plain-trie {fault} differs from the unbatched reference" in choice.reason
    assert choice.engine.name == "plain-trie", choice.reason


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_engine_of_the_package_passes_by_itself(make_model, architecture, dtype):
    for name in EXACT:
        encoder = Encoder.load(make_model(architecture), dtype=dtype, engine=name)
        assert encoder.choice.engine.name == name


@pytest.mark.parametrize(("layers", "std"), thorough((64, 0.15), (80, 0.15)))
def test_deep_float32_models_keep_the_fast_engine(make_model, states, layers, std):
    """Rounding by itself moves them by more than 1e-5: the bound follows the model's own noise."""
    folder = make_model("llama", num_hidden_layers=layers, std=std)
    encoder = Encoder.load(folder)
    assert encoder.choice.engine.name == "shared-prefix", encoder.choice.reason
    assert encoder.noise.bound > 1e-5

    def broken(model, _pooling, _layer, budget):
        return [PlainTrie(model, budget, fault) for fault in faults_of("llama")]

    assert Encoder.load(folder, engines=broken).choice.engine.name == "unbatched"
    some = sorted(states)[:12]
    reference = Encoder.load(folder, engine="unbatched").encode(some)
    assert compare(encoder.encode(some), reference)[0] <= encoder.noise.bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "fault", ["last_token_left_out", "scaled", "rope_off_by_one", "blind_to_parent"]
)
def test_a_fault_that_the_self_test_does_not_meet_is_found_in_use(llama, states, dtype, fault):
    def broken_later(model, pooling, layer, budget):
        broken = PlainTrie(model, budget, fault, only_in_use=True)
        return [broken, *default_engines(model, pooling, layer, budget)]

    encoder = Encoder.load(llama, dtype=dtype, engines=broken_later)
    assert encoder.choice.engine.name == f"plain-trie {fault}"
    some = sorted(states)[100:112]
    rows = encoder.encode(some)
    assert encoder.choice.engine.name == "shared-prefix", encoder.choice.reason
    reference = Encoder.load(llama, dtype=dtype, engine="unbatched").encode(some)
    assert compare(rows, reference)[1] >= 0.9999


def test_an_engine_that_is_forced_and_wrong_is_an_error(llama, states):
    def broken(model, _pooling, _layer, budget):
        engine = PlainTrie(model, budget, "scaled", only_in_use=True)
        engine.name = "packed"
        return [engine]

    with pytest.raises(ModelError, match="`engine` packed: cannot be used"):
        Encoder.load(llama, engine="packed", engines=broken).encode(states[:5])


def test_the_noise_floor_is_the_same_each_time_and_follows_the_dtype(llama):
    floors = {dtype: [Encoder.load(llama, dtype=dtype).noise for _ in range(2)] for dtype in DTYPES}
    assert all(first == second for first, second in floors.values())
    medians = [floors[dtype][0].median for dtype in ("float32", "float16", "bfloat16")]
    assert all(less * 4 < more for less, more in itertools.pairwise(medians))


def test_the_choice_says_what_was_measured(llama):
    choice = Encoder.load(llama, dtype="bfloat16").choice.to_json()
    assert choice["self_test_token_error"] <= choice["noise_floor"]["bound"]
    assert 0 < choice["noise_floor"]["median"] < choice["noise_floor"]["bound"] < 0.1
    assert np.isfinite(choice["self_test_cosine"])


def test_roundings_reach_no_other_thread(llama, states):
    """What measures how far rounding moves an embedding changes the model while it runs."""
    encoder = Encoder.load(llama, dtype="bfloat16")
    some = sorted(states)[100:104]
    right, tokens = encoder.encode(some), encoder.prompts.tokenize(some)
    done = threading.Event()

    def measure():
        while not done.is_set():
            encoder.selection.unbatched.spread(tokens[0])

    with ThreadPoolExecutor(1) as pool:
        measured = pool.submit(measure)
        try:
            rows = [encoder.encode(some) for _ in range(20)]
        finally:
            done.set()
        measured.result()
    assert all(np.array_equal(right, own) for own in rows)
