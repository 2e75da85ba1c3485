"""Embeddings from other people's servers: right, or refused; never wrong ones."""

import json

import numpy as np
import pytest
import torch
import transformers

from ebm_encode.encoder import Encoder
from ebm_encode.errors import ServerError, UnsafeServerError
from servers.stand_in import replies, sglang_defects, vllm

SELF_TEST_REQUESTS = 12
"""More than a self-test sends, with the prompts of one token that come with it."""


@pytest.fixture(scope="module")
def llama64(make_model):
    return make_model("llama", head_dim=64)


@pytest.fixture(scope="module")
def some(states):
    return states[:24]


@pytest.fixture(scope="module")
def truth(llama64, some):
    """Plain transformers at batch size 1."""
    model = transformers.AutoModel.from_pretrained(llama64, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama64)
    found = []
    for text in some:
        with torch.no_grad():
            found.append(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    return torch.stack(found).numpy()


def load(kind, model, url, **options):
    return Encoder.load(model, backend=kind, server=url, dtype="float32", **options)


def near(found, truth):
    return np.abs(found - truth).max() <= 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_embeddings_are_those_of_plain_transformers(stand_in, llama64, some, truth, kind):
    url = stand_in.play(kind, llama64)
    encoder = load(kind, llama64, url)
    assert encoder.choice.engine.name == kind
    for _ in range(2):  # the second time its prefix cache is warm
        assert near(encoder.encode(some), truth)
    identity = json.loads(encoder.identity.to_json())
    assert identity["backend"].startswith(kind)
    assert "by the server's word" in identity["backend_weights"]
    assert identity.keys() - json.loads(Encoder.load(llama64).identity.to_json()).keys() == {
        "backend",
        "backend_dtype",
        "backend_weights",
    }


def test_sglang_gets_token_ids_and_no_prefix_is_taken_from_its_cache(stand_in, llama64, some):
    encoder = load("sglang", llama64, stand_in.play("sglang", llama64))
    encoder.encode(some)
    asked = [r["body"] for r in stand_in.requests() if r["path"] == "/generate"]
    keys = [key for body in asked for key in body["extra_key"]]
    assert len(set(keys)) == len(keys) > len(some)
    assert all(body["sampling_params"]["max_new_tokens"] == 1 for body in asked)
    assert all("text" not in body for body in asked)
    sent = {(r["method"], r["path"]) for r in stand_in.requests()}
    assert {path for method, path in sent if method == "POST"} == {"/generate"}


def test_an_old_sglang_is_used_only_if_nobody_else_does(stand_in, llama64, some, truth):
    url = stand_in.play("sglang-old", llama64)
    with pytest.raises(UnsafeServerError, match=r"rows of other people's.*\nhint: .*exclusive"):
        load("sglang", llama64, url)
    assert not any(r["path"] == "/generate" for r in stand_in.requests())
    encoder = load("sglang", llama64, url, server_exclusive=True)
    assert near(encoder.encode(some), truth)
    asked = [r["body"] for r in stand_in.requests() if r["path"] == "/generate"]
    assert all(len(body["input_ids"]) == 1 for body in asked)
    assert all(body["logprob_start_len"] == 0 for body in asked)
    assert stand_in.status()["most"] == 1
    assert "exclusive" in json.loads(encoder.identity.to_json())["backend_use"]
    stand_in.play("sglang-old", llama64, running=1)
    with pytest.raises(UnsafeServerError, match="somebody else uses this server"):
        encoder.encode(some)


# Right row 0 and right counts with another's rows behind them: only a comparison with the model of
# this process tells, and versions that do it are refused where others use the server.
UNSEEN = {"foreign_states"}
SEEN_BY_SGLANG = sorted(
    {*sglang_defects.EACH, *sglang_defects.WHOLE, *replies.OF_CONNECTIONS} - UNSEEN
)
SEEN_BY_VLLM = sorted({*vllm.EACH, *vllm.WHOLE, *replies.OF_CONNECTIONS})


@pytest.mark.parametrize("after", [0, SELF_TEST_REQUESTS])
@pytest.mark.parametrize(
    ("kind", "defect"),
    [("sglang", name) for name in SEEN_BY_SGLANG] + [("vllm", name) for name in SEEN_BY_VLLM],
)
def test_no_defect_makes_a_wrong_embedding(stand_in, llama64, some, truth, kind, defect, after):
    url = stand_in.play(kind, llama64, defect=defect, after=after, seconds=0.5)
    found, refused = None, ""
    try:
        found = load(kind, llama64, url).encode(some)
    except (ServerError, UnsafeServerError) as error:
        refused = str(error)
    assert url in refused if found is None else near(found, truth)
