"""Rotary positions that stretch with the longest sequence of a pass (dynamic NTK, LongRoPE)."""

import copy
import types

import numpy as np
import pytest
import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import ArgumentError
from ebm_encode.loading.rotary import max_positions, stretches_after

BASE = 64
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 6.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [3.0] * 8,
    "original_max_position_embeddings": BASE,
}
KINDS = {
    "dynamic": ("llama", {"max_position_embeddings": BASE, "rope_parameters": DYNAMIC}),
    "longrope": ("phi3", {"original_max_position_embeddings": BASE, "rope_parameters": LONG}),
}


@pytest.fixture(params=KINDS)
def stretching(request, make_model):
    architecture, changes = KINDS[request.param]
    return request.param, make_model(architecture, **changes)


@pytest.fixture
def some(stretching, states):
    """Texts shorter and longer than the base length, and of just that length, in no order."""
    encoder = Encoder.load(stretching[1], overlong="skip")
    lengths = encoder.prompts.tokenize(states).lengths
    limit = encoder.prompts.max_length
    order = np.argsort(lengths, kind="stable")
    long = [int(i) for i in order if BASE < lengths[i] <= limit]
    short = [int(i) for i in order if lengths[i] < BASE]
    chosen = [long[-1], short[0], long[0], short[-1], long[len(long) // 2], *short[5:9], long[3]]
    text, exact = states[short[-1]], []
    while len(exact) < 1:
        text += " x"
        if len(encoder.prompts.tokenize([text])[0]) == BASE:
            exact.append(text)
    return [*(states[i] for i in chosen), *exact]


def each_by_a_fresh_model(folder, texts):
    """No pass has been before: transformers keeps what it computed for the longest so far."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        fresh = copy.deepcopy(model)
        with torch.no_grad():
            hidden = fresh.model(tokenizer(text, return_tensors="pt")["input_ids"])
        rows.append(hidden.last_hidden_state[0].mean(dim=0))
    return torch.stack(rows).numpy()


def test_stretched_sequences_are_those_of_a_model_that_ran_nothing_before(stretching, some):
    kind, folder = stretching
    encoder = Encoder.load(folder)
    assert encoder.model.stretches_after == BASE
    assert encoder.prompts.max_length == (BASE * 6 if kind == "dynamic" else 2048)
    lengths = encoder.prompts.tokenize(some).lengths
    assert ((lengths > BASE).sum(), (lengths < BASE).sum(), (lengths == BASE).sum()) == (4, 6, 1)
    right = each_by_a_fresh_model(folder, some)
    assert compare(encoder.encode(some), right)[0] <= 1e-5
    assert compare(encoder.encode(some[::-1])[::-1], right)[0] <= 1e-5
    assert encoder.choice.engine.name == "shared-prefix"


def test_an_unbatched_text_does_not_depend_on_what_ran_before(stretching, some):
    encoder = Encoder.load(stretching[1])
    tokens = encoder.prompts.tokenize(some)
    first = [encoder.run_unbatched(tokens[i]) for i in range(len(tokens))]
    longest = int(tokens.lengths.argmax())
    for i in range(len(tokens)):
        encoder.run_unbatched(tokens[longest])
        assert np.array_equal(encoder.run_unbatched(tokens[i]), first[i])


def test_an_inner_layer_and_the_last_token_do_not_depend_on_it_either(stretching, some):
    encoder = Encoder.load(stretching[1], layer=-2, pooling="last")
    rows = [encoder.encode([text])[0] for text in some]
    assert compare(encoder.encode(some), np.stack(rows))[0] <= 1e-5


def config(**fields):
    return types.SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("fields", "own", "reach", "stretches"),
    [
        ({"max_position_embeddings": 100}, 10**30, 100, None),
        ({"max_position_embeddings": 100}, 60, 60, None),
        ({"max_position_embeddings": 100}, "60", 60, None),
        ({}, 10**30, None, None),
        ({"max_position_embeddings": 64, "rope_parameters": DYNAMIC}, 10**30, 384, 64),
        ({"max_position_embeddings": 64, "rope_parameters": DYNAMIC}, 64, 384, 64),
        ({"max_position_embeddings": 64, "rope_parameters": DYNAMIC}, 200, 200, 64),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            10**30,
            128,
            64,
        ),
        (
            {"max_position_embeddings": 64, "rope_parameters": {"full": DYNAMIC, "other": {}}},
            10**30,
            384,
            64,
        ),
        ({"max_position_embeddings": 64, "rope_parameters": LONG}, 10**30, 256, 64),
        ({"max_position_embeddings": 512, "rope_parameters": LONG}, 10**30, 512, 64),
        (
            {
                "max_position_embeddings": 64,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            10**30,
            256,
            None,
        ),
        (
            {
                "max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            10**30,
            64,
            None,
        ),
    ],
)
def test_how_far_models_read(fields, own, reach, stretches):
    tokenizer = types.SimpleNamespace(model_max_length=own)
    assert max_positions(config(**fields), tokenizer) == reach
    assert stretches_after(config(**fields)) == stretches


def test_more_than_a_model_reads_is_refused(make_model):
    architecture, changes = KINDS["dynamic"]
    folder = make_model(architecture, **changes)
    assert Encoder.load(folder, max_length=384)
    with pytest.raises(ArgumentError, match="at most 384 tokens"):
        Encoder.load(folder, max_length=385)
