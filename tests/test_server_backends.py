"""Embeddings from other people's servers: right, or refused; never wrong ones."""

import asyncio
import importlib.metadata
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
import transformers

from ebm_encode import EmbeddingCache
from ebm_encode.cli import main
from ebm_encode.encoder import Encoder
from ebm_encode.errors import ArgumentError, ServerError, UnsafeServerError
from servers.stand_in import replies, sglang_defects, vllm


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


SEEN_BY_SGLANG = sorted({*sglang_defects.EACH, *sglang_defects.WHOLE, *replies.OF_CONNECTIONS})
SEEN_BY_VLLM = sorted({*vllm.EACH, *vllm.WHOLE, *replies.OF_CONNECTIONS})


CASES = [("sglang", name) for name in SEEN_BY_SGLANG] + [("vllm", name) for name in SEEN_BY_VLLM]


@pytest.fixture(scope="module")
def loaded(llama64):
    """Encoders that were loaded while the server was right."""
    found = {}

    def get(stand_in, kind, defect):
        url = stand_in.play(kind, llama64)
        # Connections that fail make a client wait before it asks again.
        key = (kind, defect if defect in replies.OF_CONNECTIONS else "")
        if key not in found:
            found[key] = load(kind, llama64, url)
        return url, found[key]

    return get


@pytest.mark.parametrize(("kind", "defect"), CASES)
def test_no_defect_makes_a_wrong_embedding(stand_in, llama64, loaded, some, truth, kind, defect):
    url, encoder = loaded(stand_in, kind, defect)
    encoder.encode(some)  # so that these lengths are known to be right
    stand_in.play(kind, llama64, defect=defect, seconds=0.5)
    found, refused = None, ""
    try:
        found = encoder.encode(some)
    except (ServerError, UnsafeServerError) as error:
        refused = str(error)
    assert url in refused if found is None else near(found, truth)


@pytest.mark.parametrize(
    ("kind", "defect"),
    [
        *[("sglang", name) for name in ("zeros", "foreign_states", "swapped", "scaled", "death")],
        *[("vllm", name) for name in ("zeros", "not_json", "gone")],
    ],
)
def test_a_defect_at_the_start_is_found_by_the_self_test(stand_in, llama64, kind, defect):
    url = stand_in.play(kind, llama64, defect=defect)
    with pytest.raises((ServerError, UnsafeServerError), match=url):
        load(kind, llama64, url)


def test_a_server_in_another_16_bit_dtype_is_refused(stand_in, llama64):
    url = stand_in.play("sglang", llama64, info={"dtype": "auto"}, defect="float16")
    with pytest.raises(UnsafeServerError, match="values are not of bfloat16"):
        Encoder.load(llama64, backend="sglang", server=url, dtype="bfloat16")
    stand_in.play("sglang", llama64, info={"dtype": "bfloat16"})
    with pytest.raises(UnsafeServerError, match="--dtype bfloat16"):
        load("sglang", llama64, url)


def test_prompts_beyond_a_chunk_are_encoded_here(stand_in, llama64, some, truth, heard):
    url = stand_in.play("sglang", llama64, chunk=40)
    assert near(load("sglang", llama64, url).encode(some), truth)
    assert "longer than the sglang server takes (40 tokens)" in heard.text


def test_a_pooling_server_is_told_apart_before_anything_is_encoded(stand_in, llama64):
    url = stand_in.play("vllm", llama64, pooling="last", normalize=True)
    with pytest.raises(UnsafeServerError, match="same pooling") as refused:
        load("vllm", llama64, url)
    assert "batch size 1" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"server": "http://localhost:1"}, "goes with a `backend`"),
        ({"server_token": "x"}, "goes with a `backend`"),
        ({"server_exclusive": True}, "goes with `backend` sglang"),
        ({"backend": "vllm"}, "needs a server"),
        ({"backend": "vllm", "server": "localhost:1"}, "expected a URL"),
        ({"backend": "vllm", "server": object()}, "expected a URL"),
        ({"backend": "other"}, "expected hf, remote, sglang or vllm"),
        ({"backend": "sglang", "server": "http://localhost:1", "layer": 1}, "the last one only"),
        ({"backend": "sglang", "server": "http://localhost:1", "engine": "padded"}, "`engine`"),
        ({"backend": "vllm", "server": "http://localhost:1", "pooling": "last"}, "mean pooling"),
    ],
)
def test_options_that_do_not_fit_are_refused(llama64, options, said):
    with pytest.raises(ArgumentError, match=said):
        Encoder.load(llama64, **options)


def test_encode_records_the_server_and_verifies(stand_in, llama64, tmp_path, capsys):
    out = tmp_path / "states.parquet"
    command = ["encode", "--model-path", llama64, "--dtype", "float32", "--output", str(out)]
    command += ["--trajectories", "samples/burnqed_roots.parquet", "--backend", "sglang"]
    url = stand_in.play("sglang", llama64)
    assert main([*command, "--server", url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["engine"]["name"] == "sglang"
    cache = EmbeddingCache.open(out)
    (provenance,) = cache.provenance
    assert provenance["backend"]["version"] == "0.5.23"
    assert provenance["verification"]["max_relative_error"] < 1e-5
    assert cache.identity != Encoder.load(llama64, dtype="float32").identity
    # A server that goes away: what is encoded stays, and the same command resumes.
    stand_in.play("sglang", llama64, defect="gone", after=4)
    assert main([*command, "--server", url, "--overwrite"]) == 2
    assert "went away" in capsys.readouterr().err
    stand_in.play("sglang", llama64)
    assert main([*command, "--server", url, "--overwrite"]) == 0


class OneLoop:
    """As `sglang.Engine`: in this process, with an event loop of its own."""

    def __init__(self, url, model):
        self.server_args = SimpleNamespace(
            **httpx2.get(f"{url}/server_info").json() | {"model_path": model, "is_embedding": False}
        )
        self._url, self._loop = url, asyncio.new_event_loop()

    def generate(self, **body):
        assert "rid" not in body, "its own method has no such argument"

        async def ask():
            await asyncio.sleep(0.01)
            return httpx2.post(f"{self._url}/generate", json=body).json()

        return self._loop.run_until_complete(ask())

    def close(self):
        self._loop.close()


def test_an_engine_of_this_process_is_asked_by_one_thread_at_a_time(
    stand_in, llama64, some, truth, monkeypatch
):
    engine = OneLoop(stand_in.play("sglang", llama64), llama64)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.23")
    encoder = Encoder.load(llama64, backend="sglang", server=engine, dtype="float32")
    many = [f"{text}\n-- {i}" for i in range(8) for text in some]
    assert near(encoder.encode(many)[: len(some)], encoder.encode(many[: len(some)]))
    assert near(encoder.encode(some), truth)
    engine.close()


def test_a_vllm_that_was_started_again_is_noticed(stand_in, llama64, make_model, some):
    url = stand_in.play("vllm", llama64)
    encoder = load("vllm", llama64, url)
    encoder.encode(some)
    stand_in.play("vllm", make_model("llama", head_dim=64, seed=5))
    with pytest.raises(ServerError, match="does not exist"):
        encoder.encode(some)
    stand_in.play("vllm", llama64, pooling="last")
    with pytest.raises(UnsafeServerError, match="started again"):
        encoder.encode(some)


def test_ctrl_c_does_not_wait_for_a_server(stand_in, llama64, tmp_path):
    url = stand_in.play("sglang", llama64, defect="hang", after=4)
    command = [sys.executable, "-m", "ebm_encode", "encode", "--model-path", llama64]
    command += ["--trajectories", "samples/burnqed_roots.parquet", "--dtype", "float32"]
    command += ["--output", str(tmp_path / "s.parquet"), "--backend", "sglang", "--server", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        sent = 0
        while sent < 5:
            sent = sum(r["path"] == "/generate" for r in stand_in.requests())
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert "interrupted" in process.stderr.read()
    assert main([*command[3:-2], "--server", url, "--verify-sample", "0"]) == 2
