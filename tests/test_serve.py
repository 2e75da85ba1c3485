"""`ebm-encode serve` and its clients, against plain transformers at batch size 1."""

import base64
import json
import os
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import openai
import psutil
import pyarrow as pa
import pytest
import torch
import transformers
from langchain_openai import OpenAIEmbeddings

from ebm_encode import EmbeddingCache, Encoder, RemoteEncoder
from ebm_encode.cli import main
from ebm_encode.errors import EncodingError, IdentityMismatchError, ServerError
from served import served

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def server(llama):
    with served(llama, "--queue-texts", 3000, "--max-texts", 1000, "--max-body-mib", 4) as found:
        yield found


@pytest.fixture(scope="module")
def url(server):
    return server.url


@pytest.fixture(scope="module")
def some(states):
    return states[:40]


@pytest.fixture(scope="module")
def truth(llama, some):
    model = transformers.AutoModel.from_pretrained(llama)
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    found = {}
    for text in some:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found[text] = hidden.float().mean(0).numpy()
    return found


@pytest.fixture(scope="module")
def name(llama):
    return llama.rsplit("/", 1)[1]


def near(found, truth):
    return np.abs(np.asarray(found) - truth).max() <= 1e-5 * np.abs(truth).max()


def ids_of(llama, text):
    return transformers.AutoTokenizer.from_pretrained(llama)(text)["input_ids"]


# What it answers.


def test_json_raw_and_arrow_hold_the_same_embeddings(url, llama, some, truth):
    right = np.stack([truth[text] for text in some])
    for body in ({"texts": some}, {"tokens": [ids_of(llama, text) for text in some]}):
        answer = httpx2.post(f"{url}/encode", json=body)
        found = answer.json()
        assert near([item["embedding"] for item in found["items"]], right)
        assert {item["status"] for item in found["items"]} == {"ok"}
        assert found["identity"] == answer.headers["ebm-identity"]
        raw = httpx2.post(
            f"{url}/encode", json=body, headers={"accept": "application/octet-stream"}
        )
        rows, dim = int(raw.headers["ebm-rows"]), int(raw.headers["ebm-dim"])
        assert near(np.frombuffer(raw.content, "<f4").reshape(rows, dim), right)
        stream = httpx2.post(f"{url}/encode", json=body, headers={"accept": ARROW})
        table = pa.ipc.open_stream(stream.content).read_all()
        assert near(table["embedding"].to_pylist(), right)
        assert table["tokens"].to_pylist() == [len(ids_of(llama, text)) for text in some]
        assert table.schema.metadata[b"ebm-encode.identity"].decode() == found["identity"]
    assert answer.headers["x-request-id"] != raw.headers["x-request-id"]


def test_a_state_without_an_embedding_does_not_spoil_others(url, some, truth):
    long = "n : ℕ\n" * 3000 + "⊢ True"
    found = httpx2.post(f"{url}/encode", json={"texts": [some[0], long, some[1]]}).json()["items"]
    assert [item["status"] for item in found] == ["ok", "overlong", "ok"]
    assert found[1]["embedding"] is None
    assert "tokens" in found[1]["reason"]
    assert near(found[2]["embedding"], truth[some[1]])
    body = {"texts": [some[0], long]}
    raw = httpx2.post(f"{url}/encode", json=body, headers={"accept": "application/octet-stream"})
    assert json.loads(raw.headers["ebm-errors"])[0]["index"] == 1
    half = len(raw.content) // 2
    assert np.isnan(np.frombuffer(raw.content[half:], "<f4")).all()
    wrong = httpx2.post(f"{url}/encode", json={"tokens": [[1, 2], [10**6]]}).json()["items"]
    assert [item["status"] for item in wrong] == ["ok", "unknown_token"]
    json_ = {"content-type": "application/json"}
    half = httpx2.post(f"{url}/encode", content=b'{"texts": ["\\ud800", "a"]}', headers=json_)
    assert [item["status"] for item in half.json()["items"]] == ["not_text", "ok"]
    assert httpx2.post(f"{url}/encode", json={"texts": []}).json()["items"] == []


def test_openai_and_langchain_clients_work(url, name, llama, some, truth):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for encoding in ("float", "base64"):
        answer = client.embeddings.create(model=name, input=some[:5], encoding_format=encoding)
        rows = [
            np.frombuffer(base64.b64decode(own.embedding), "<f4")
            if isinstance(own.embedding, str)
            else own.embedding
            for own in answer.data
        ]
        assert near(rows, np.stack([truth[text] for text in some[:5]]))
        assert answer.usage.prompt_tokens == sum(len(ids_of(llama, text)) for text in some[:5])
    one = client.embeddings.create(model=name, input=ids_of(llama, some[0]))
    assert near(one.data[0].embedding, truth[some[0]])
    assert [model.id for model in client.models.list()] == [name]
    with pytest.raises(openai.NotFoundError, match=name):
        client.embeddings.create(model="another", input="x")
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model=name, input="x", dimensions=3)
    with pytest.raises(openai.BadRequestError, match="input 0"):
        client.embeddings.create(model=name, input="n : ℕ\n" * 3000)
    chain = OpenAIEmbeddings(
        model=name, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert near(chain.embed_documents(some[:3]), np.stack([truth[text] for text in some[:3]]))
    assert near(chain.embed_query(some[0]), truth[some[0]])


def test_health_info_metrics_and_openapi(url, llama):
    assert httpx2.get(f"{url}/health").json() == {"status": "ready", "reason": ""}
    info = httpx2.get(f"{url}/info").json()
    assert info["identity_digest"] == Encoder.load(llama).identity.digest
    assert info["limits"]["max_texts"] == 1000
    httpx2.post(f"{url}/encode", json={"texts": ["⊢ counted"]})
    metrics = httpx2.get(f"{url}/metrics").text
    assert 'ebm_encode_states_total{status="ok"}' in metrics
    assert 'ebm_encode_requests_total{endpoint="/encode",status="200"}' in metrics
    assert "/v1/embeddings" in httpx2.get(f"{url}/openapi.json").json()["paths"]


# What it refuses.


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (422, "invalid_body", {"json": {}}),
        (422, "invalid_body", {"json": {"texts": ["a"], "tokens": [[1]]}}),
        (422, "invalid_body", {"json": {"texts": ["a"], "other": 1}}),
        (422, "invalid_body", {"json": {"texts": [1]}}),
        (422, "invalid_body", {"json": {"tokens": [[-1]]}}),
        (422, "invalid_body", {"content": b"{"}),
        (400, "invalid_request", {"content": b"\xff"}),
        (413, "body_too_long", {"content": b"x" * (5 * 2**20)}),
        (413, "body_too_long", {"content": iter([b"x" * 2**20] * 5)}),
        (413, "too_many_texts", {"json": {"texts": ["a"] * 1001}}),
        (406, "not_acceptable", {"json": {"texts": ["a"]}, "headers": {"accept": "text/html"}}),
    ],
)
def test_bad_requests_are_told_why(url, status, code, request_):
    headers = {"content-type": "application/json"} | request_.pop("headers", {})
    answer = httpx2.post(f"{url}/encode", headers=headers, **request_)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert "x-request-id" in answer.headers


def test_one_wrong_element_of_many_is_told(server, url, name):
    """Not each of them: that took seconds and gigabytes, in which nobody was served."""
    before = psutil.Process(server.process.pid).memory_info().rss
    for path, body in [
        ("/encode", {"texts": [1] * 500_000}),
        ("/encode", {"tokens": [[-1] * 500_000]}),
        ("/v1/embeddings", {"model": name, "input": [None] * 500_000}),
        ("/encode", {"texts": ["a"]} | {f"key{i}": 1 for i in range(100_000)}),
    ]:
        answer = httpx2.post(f"{url}{path}", json=body)
        assert answer.status_code == 422
        assert len(answer.text) < 1000
        assert "functools" not in answer.text
    assert psutil.Process(server.process.pid).memory_info().rss < before + 200 * 2**20


def test_an_address_for_others_needs_a_token(llama, capsys, tmp_path):
    assert main(["serve", "--model-path", llama, "--host", "0.0.0.0"]) == 2
    assert "token" in capsys.readouterr().err
    assert main(["serve", "--model-path", llama, "--memory-fraction", "2"]) == 2
    token = tmp_path / "token"
    token.write_text("correct horse\n")
    assert main(["serve", "--model-path", llama, "--token-file", str(token)]) == 2
    token.write_text("correct-horse\n")
    with served(llama, "--token-file", token) as server:
        assert httpx2.post(f"{server.url}/encode", json={"texts": ["a"]}).status_code == 401
        assert httpx2.get(f"{server.url}/health").status_code == 200
        wrong = {"authorization": "Bearer wrong"}
        assert httpx2.get(f"{server.url}/info", headers=wrong).status_code == 401
        with pytest.raises(ServerError, match="401"):
            RemoteEncoder(server.url)
        with RemoteEncoder(server.url, token="correct-horse") as remote:
            assert remote.encode(["a"]).shape == (1, remote.dim)
        assert "correct-horse" not in "".join(server.log)


def test_memory_fraction_needs_a_gpu(llama):
    if torch.cuda.is_available():
        with served(llama, "--memory-fraction", "0.5"):
            return
    with served(llama, "--memory-fraction", "0.5", ready=False) as server:
        assert server.process.wait(120) == 2
    assert "no GPU" in "".join(server.log)


def test_what_does_not_fit_the_queue_is_refused_and_too_slow_work_ends(llama, states):
    options = ("--queue-texts", 40, "--timeout", 0.5, "--wait-ms", 0, "--batch-states", 8)
    with served(llama, *options) as server, ThreadPoolExecutor(12) as pool:
        long = ["\n".join(f"x{k}{i} : ℕ" for k in range(300)) + "\n⊢ True" for i in range(240)]

        def ask(k):
            return httpx2.post(f"{server.url}/encode", json={"texts": long[20 * k : 20 * k + 20]})

        answers = [*pool.map(ask, range(12))]
        kinds = {answer.status_code for answer in answers}
        assert kinds <= {200, 429, 504}
        busy = [answer for answer in answers if answer.status_code == 429]
        assert busy
        assert all(answer.headers["retry-after"] for answer in busy)
        # What nobody waits for any more is still encoded.
        server.wait_idle()
        # Half a second is little where other programs have the cores.
        for _ in range(60):
            status = httpx2.post(f"{server.url}/encode", json={"texts": states[:1]}).status_code
            if status != 504:
                break
        assert status == 200


# Many clients, bad ones among them.


HEAD = b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def misbehave(url, some, seed):
    """What some clients do: go away, send nonsense, send too much."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"texts": some}).encode()
    payload, linger = [
        (HEAD + b"content-length: 100000\r\n\r\n{", 0.05),  # gone in the middle of its body
        (HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body, 0),  # before the answer
        (b"\x00\xff nonsense\r\n\r\n", 0.01),
    ][seed % 3]
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(payload)
        time.sleep(linger)
    content, status = [(b"{" * 1000, 422), (b"x" * (5 * 2**20), 413)][seed % 2]
    assert httpx2.post(f"{url}/encode", content=content, timeout=60).status_code == status


def test_a_crowd_gets_right_answers_or_right_errors(server, url, some, truth):
    memory = psutil.Process(server.process.pid)

    def ask(seed):
        rng = random.Random(seed)
        chosen = rng.choices(some, k=rng.choice([1, 3, 8, 40]))
        with httpx2.Client(timeout=120, headers={"accept": ARROW}) as client:
            for _ in range(3):
                answer = client.post(f"{url}/encode", json={"texts": chosen})
                assert answer.status_code == 200, answer.text
                rows = pa.ipc.open_stream(answer.content).read_all()["embedding"].to_pylist()
                assert near(rows, np.stack([truth[text] for text in chosen]))

    ask(0)
    before = memory.memory_info().rss
    for _ in range(3):
        with ThreadPoolExecutor(64) as pool:
            calls = [
                pool.submit(ask, k) if k % 5 else pool.submit(misbehave, url, some, k)
                for k in range(128)
            ]
            for call in calls:
                call.result()
    assert memory.memory_info().rss < before + 200 * 2**20
    assert httpx2.get(f"{url}/health").status_code == 200


def test_a_slow_body_is_not_waited_for_by_others(url, some, truth):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        answer = httpx2.post(f"{url}/encode", json={"texts": some[:1]})
        assert near(answer.json()["items"][0]["embedding"], truth[some[0]])


# Its start and its end.


def test_it_says_when_it_is_ready_and_ends_in_good_order(llama, some, truth, tmp_path):
    out = tmp_path / "new.parquet"
    with served(llama, "--append-to", out, ready=False) as server:
        early = httpx2.get(f"{server.url}/health")
        assert (early.status_code, early.json()["status"]) == (503, "loading")
        assert httpx2.post(f"{server.url}/encode", json={"texts": ["a"]}).status_code == 503
        server.wait_ready()
        answers = []

        def ask():
            answers.append(httpx2.post(f"{server.url}/encode", json={"texts": some}, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        while b"waiting_states 40" not in httpx2.get(f"{server.url}/metrics").content:
            if answers:
                break
        assert server.stop() == 0
        asking.join()
        assert answers[0].status_code == 200
    assert sorted(EmbeddingCache.open(out)) == sorted(some)
    with served(llama, "--cache", out, "--engine", "unbatched") as server:
        with RemoteEncoder(server.url) as remote:
            assert near(remote.encode(some), np.stack([truth[text] for text in some]))
        assert "ebm_encode_encoder_cache_hits 40.0" in httpx2.get(f"{server.url}/metrics").text
        assert server.stop(signal.SIGINT) == 0


def test_a_request_that_never_ends_does_not_keep_it(llama):
    """Work that outlives its request is left behind when the server is stopped."""
    long = ["\n".join(f"x{k}{i} : ℕ" for k in range(300)) + "\n⊢ True" for i in range(900)]
    options = ("--timeout", 1, "--shutdown-seconds", 1, "--wait-ms", 0)
    with served(llama, *options) as server:
        ids = ids_of(llama, long[0])
        for body in ({"texts": long}, {"tokens": [[*ids, i] for i in range(900)]}):
            start = time.monotonic()
            answer = httpx2.post(f"{server.url}/encode", json=body, timeout=60)
            assert answer.status_code in {200, 504}
            assert time.monotonic() - start < 20
        assert server.stop(seconds=60) == 0


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path):
    with served(str(tmp_path / "none"), ready=False) as server:
        assert server.process.wait(120) == 2
    assert "error:" in "".join(server.log)


def test_a_port_in_use_is_told(url, llama, capsys):
    port = url.rsplit(":", 1)[1]
    assert main(["serve", "--model-path", llama, "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


# The client.


def test_a_remote_encoder_answers_as_the_encoder_does(url, llama, states):
    here = Encoder.load(llama)
    long = "n : ℕ\n" * 3000 + "⊢ True"
    count = len(states)
    given = [*states, long, None, states[0]]
    with RemoteEncoder(url) as remote:
        assert remote.identity == here.identity
        out, other = (np.empty((len(given), remote.dim), np.float32) for _ in range(2))
        reports, own = remote.encode_into(given, out), here.encode_into(given, other)
        assert [r.status for r in reports] == [r.status for r in own]
        assert near(out[:count], other[:count])
        assert np.isnan(out[count : count + 2]).all()
        assert [r.token_digest for r in reports[:100]] == [r.token_digest for r in own[:100]]
        with pytest.raises(EncodingError, match="1 of 2 states"):
            remote.encode([states[0], long])


def test_a_remote_encoder_keeps_to_the_server_s_limits(llama, some, truth):
    options = ("--queue-texts", 10, "--max-texts", 100, "--max-body-mib", 1)
    with served(llama, *options) as server, RemoteEncoder(server.url) as remote:
        assert near(remote.encode(some), np.stack([truth[text] for text in some]))
        out = np.empty((2, remote.dim), np.float32)
        # As JSON a control character takes six bytes.
        reports = remote.encode_into([some[0], "\x01" * 300_000], out)
        assert [report.status for report in reports] == ["ok", "failed"]
        assert "the server takes" in reports[1].reason
        assert httpx2.post(f"{server.url}/encode", json={"texts": some}).status_code == 413


def test_a_server_that_comes_back_is_recognised(llama, make_model, some):
    other = make_model("llama", seed=5)
    with served(llama) as server:
        port = server.url.rsplit(":", 1)[1]
        remote = RemoteEncoder(server.url, timeout=20)
        first = remote.encode(some[:2])
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        with pytest.raises(ServerError, match="cannot be reached"):
            remote.encode(some[:1])
    with served(llama, "--port", port):
        assert (remote.encode(some[:2]) == first).all()
    with served(other, "--port", port), pytest.raises(IdentityMismatchError, match="connect again"):
        remote.encode(some[:2])
    remote.close()


def test_encode_takes_a_server_of_the_same_encoder_only(url, llama, make_model, tmp_path, capsys):
    out = tmp_path / "states.parquet"
    common = [
        "--trajectories",
        "samples/burnqed_roots.parquet",
        "--output",
        str(out),
        "--backend",
        "remote",
    ]
    assert main(["encode", "--model-path", llama, *common, "--server", url, "--quiet"]) == 0
    assert EmbeddingCache.open(out).identity == Encoder.load(llama).identity
    other = make_model("llama", seed=5)
    assert main(["encode", "--model-path", other, *common, "--server", url, "--overwrite"]) == 2
    assert "serves another encoder: weights" in capsys.readouterr().err
    assert main(["encode", "--model-path", llama, *common]) == 2
    assert "--server" in capsys.readouterr().err
