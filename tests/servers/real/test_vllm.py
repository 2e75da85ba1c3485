"""A real vLLM 0.32: equal to plain transformers with mean pooling, and wrong by default."""

import json

import httpx2
import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.errors import UnsafeServerError
from servers.real.launch import FLOAT32, MEAN, POOLING

pytestmark = pytest.mark.timeout(1500)  # a server takes minutes to start on a busy machine
DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.fixture(scope="session")
def served_model(make_model):
    """vLLM's CPU attention ends the server at its first request where a head has 16 values."""
    return make_model("llama", head_dim=64)


@pytest.fixture(scope="module")
def server(start, served_model):
    with start("vllm", served_model, *POOLING, *FLOAT32, *MEAN, **DEVELOPER) as found:
        yield found


@pytest.fixture(scope="module")
def default_server(start, served_model):
    """As most people start one: no pooling given, no dtype, no developer mode."""
    with start("vllm", served_model, *POOLING) as found:
        yield found


@pytest.fixture
def embedded(reference):
    """A function that asks for embeddings of texts by index, in little-endian bytes: [n, dim]."""

    def embed(server, which, **more):
        body = {"input": [reference.ids[i] for i in which], "encoding_format": "bytes"}
        body |= {"endianness": "little", "embed_dtype": "float32"}
        reply = server.post("/v1/embeddings", body | more)
        assert reply.status_code == 200, reply.text
        meta = json.loads(reply.headers["metadata"])
        assert meta["usage"]["prompt_tokens"] == sum(len(reference.ids[i]) for i in which)
        return np.frombuffer(reply.content, "<f4").reshape(len(which), -1)

    return embed


# What the server itself does, through plain requests


def test_it_says_its_version_and_options_in_developer_mode(server, note):
    assert server.get("/version").json()["version"] == "0.32.0"
    told = server.get("/server_info?config_format=json").json()["vllm_config"]["model_config"]
    pooling = told["pooler_config"]
    assert (told["dtype"], pooling["seq_pooling_type"]) == ("torch.float32", "MEAN")
    assert pooling["use_activation"] is False
    note(f"vLLM 0.32.0: /server_info (developer mode) says dtype {told['dtype']}")


def test_mean_pooling_equals_plain_transformers(server, reference, embedded, note):
    worst = 0.0
    for which in [[0], list(range(6)), list(range(6)), [0, 6, 7, 8], [0, 0, 1]]:
        got = embedded(server, which)
        wanted = np.stack([reference.mean(i) for i in which])
        np.testing.assert_allclose(got, wanted, atol=2e-5)
        worst = max(worst, float(np.abs(got - wanted).max()))
    note(f"vLLM 0.32.0, MEAN, use_activation false: within {worst:.1e} of plain transformers")


def test_a_request_can_ask_for_another_embedding(server, reference, embedded):
    for more in [{"use_activation": True}]:
        got = embedded(server, [0], **more)
        np.testing.assert_allclose(np.linalg.norm(got), 1, atol=1e-4)
    body = {"input": [reference.texts[0]], "truncate_prompt_tokens": 8}
    reply = server.post("/v1/embeddings", body).json()
    assert reply["usage"]["prompt_tokens"] == 8


def test_sleep_without_the_option_says_200_and_does_nothing(server, reference, embedded, note):
    assert server.post("/sleep", {}).status_code == 200
    asleep = server.get("/is_sleeping").json()["is_sleeping"]
    healthy = server.get("/health").status_code
    body = {"input": [reference.ids[0]]}
    try:
        httpx2.post(server.url + "/v1/embeddings", json=body, timeout=15)
        answered = "answers"
    except httpx2.TimeoutException:
        answered = "hangs"
    assert server.post("/wake_up", {}).status_code == 200
    assert asleep
    note(f"vLLM 0.32.0, /sleep: 200, is_sleeping true, /health {healthy}; a request {answered}")
    np.testing.assert_allclose(embedded(server, [0])[0], reference.mean(0), atol=2e-5)


def test_the_default_is_the_last_token_of_norm_1(default_server, reference, embedded, note):
    got = embedded(default_server, [0, 1])
    last = np.stack([reference.states[i][-1] for i in [0, 1]])
    unit = last / np.linalg.norm(last, axis=1, keepdims=True)
    error = float(np.abs(got - unit).max())
    note(f"vLLM 0.32.0 by default: the last token, normalised (within {error:.1e})")
    assert error < 2e-2
    paths = ["/server_info?config_format=json", "/is_sleeping"]
    assert [default_server.get(path).status_code for path in paths] == [404, 404]


# This package's client


def test_an_encoder_gives_the_embeddings_of_plain_transformers(
    server, served_model, many, means, note
):
    encoder = Encoder.load(
        served_model, backend="vllm", server=server.url, dtype="float32", batch_size=32
    )
    assert encoder.choice.engine.name == "vllm"
    worst = max(float(np.abs(encoder.encode(many) - means).max()) for _ in range(2))
    note(f"ebm-encode with vLLM 0.32.0, MEAN: 100 states within {worst:.1e} of plain transformers")
    assert worst < 2e-5


def test_a_server_with_default_pooling_is_refused(default_server, served_model, note):
    with pytest.raises(UnsafeServerError) as error:
        Encoder.load(served_model, backend="vllm", server=default_server.url, dtype="float32")
    note(f"ebm-encode with vLLM 0.32.0 by default: {error.value}")


def test_the_doctor_tells_how_it_pools(server, default_server, served_model, doctor):
    model = ["--model-path", served_model, "--dtype", "float32"]
    code, found = doctor(server.url, *model)
    assert code == 0
    assert found["how it pools"]["answer"] == "the mean of the last hidden states"
    code, found = doctor(default_server.url, *model)
    assert code == 1
    assert "last token" in found["how it pools"]["answer"] or not found["its norms"]["right"]
