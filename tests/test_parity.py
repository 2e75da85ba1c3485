"""Every embedding equals what the plain Hugging Face model gives for that one prompt."""

import numpy as np
import pytest
import torch
import transformers

from ebm_encode import Encoder
from ebm_encode.engines.reference import compare
from matrix import pairs

ARCHITECTURES = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "mixtral",
]


def unbatched(folder, prompts, *, dtype=torch.float32, layer=-1, pooling="mean", cut=None):
    """The recipe that nobody can get wrong: one prompt, no padding, plain transformers.

    Where prompts are longer than `cut` tokens, transformers itself cuts them.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt in prompts:
        cutting = {} if cut is None else {"truncation": True, "max_length": cut}
        ids = tokenizer(prompt, return_tensors="pt", **cutting)["input_ids"]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[layer][0].float()
        rows.append(hidden.mean(dim=0) if pooling == "mean" else hidden[-1])
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def mixed(states):
    """One long and many short, some of equal length, in no order."""
    by_length = sorted(states, key=len)
    return [by_length[-3], *by_length[:12], by_length[-1], *by_length[200:215]]


@pytest.mark.parametrize(("architecture", "padding_side"), pairs(ARCHITECTURES, ["left", "right"]))
def test_embeddings_equal_those_at_batch_size_1(make_model, mixed, architecture, padding_side):
    folder = make_model(architecture, padding_side=padding_side)
    encoder = Encoder.load(folder, max_batch_tokens=3000)
    error, cosine = compare(encoder.encode(mixed), unbatched(folder, mixed))
    assert error <= 1e-5
    assert cosine > 0.999999


@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (100_000, 1), (100_000, 256), (700, 3)])
def test_the_shape_of_batches_changes_nothing(llama, mixed, tokens, size):
    encoder = Encoder.load(llama, max_batch_tokens=tokens, batch_size=size)
    assert compare(encoder.encode(mixed), unbatched(llama, mixed))[0] <= 1e-5


def test_equal_lengths_and_a_lone_state(llama, states):
    encoder = Encoder.load(llama)
    state = states[0]
    equal = [f"{state}{digit}" for digit in "0123456789"]
    assert compare(encoder.encode(equal), unbatched(llama, equal))[0] <= 1e-5
    assert compare(encoder.encode([state]), unbatched(llama, [state]))[0] <= 1e-5


def test_order_and_company_change_nothing(llama, mixed):
    encoder = Encoder.load(llama)
    forward = encoder.encode(mixed)
    backward = encoder.encode(mixed[::-1])[::-1]
    some = encoder.encode(mixed[5:9])
    assert compare(backward, forward)[0] <= 1e-5
    assert compare(some, forward[5:9])[0] <= 1e-5


@pytest.mark.parametrize("layer", [-1, -2, 0, 2, 3])
def test_any_layer_is_the_one_of_hidden_states(llama, mixed, layer):
    encoder = Encoder.load(llama, layer=layer)
    assert compare(encoder.encode(mixed), unbatched(llama, mixed, layer=layer))[0] <= 1e-5


def test_last_pooling_is_the_last_own_token(llama, mixed):
    encoder = Encoder.load(llama, pooling="last")
    assert compare(encoder.encode(mixed), unbatched(llama, mixed, pooling="last"))[0] <= 1e-5


def test_truncated_prompts_equal_the_cut_prompt_unbatched(llama, mixed):
    encoder = Encoder.load(llama, max_length=40, overlong="truncate")
    assert compare(encoder.encode(mixed), unbatched(llama, mixed, cut=40))[0] <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_embeddings_are_as_near_to_the_truth_as_the_reference(llama, mixed, dtype):
    encoder = Encoder.load(llama, dtype=dtype)
    ours = encoder.encode(mixed)
    reference = unbatched(llama, mixed, dtype=getattr(torch, dtype))
    truth = unbatched(llama, mixed)
    assert compare(ours, reference)[1] >= 0.9995
    distance = np.linalg.norm(ours - truth, axis=1).mean()
    assert distance <= 1.2 * np.linalg.norm(reference - truth, axis=1).mean()
    assert encoder.model.dtype == dtype
