"""Answers that no right server gives: each is a typed error, in time, and none is an embedding."""

import contextlib
import json
import random
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import numpy as np
import pytest

from ebm_encode import Encoder
from ebm_encode.cli import main
from ebm_encode.errors import ArgumentError, EbmEncodeError, ServerError, UnsafeServerError
from ebm_encode.serve.forms import Encoded, Origin, as_arrow
from ebm_encode.servers.http import ServerClient
from ebm_encode.servers.remote import RemoteEncoder
from ebm_encode.servers.sglang.replies import states_of
from ebm_encode.servers.sglang.structure import StructureCheck
from ebm_encode.servers.vllm.engine import embeddings_of
from ebm_encode.servers.vllm.info import VllmInfo
from served import served

TOKENS = np.array([5, 6, 7], np.uint32)


@contextmanager
def answering(answers, *, pause=0.0):
    """The address of a server that gives each path its body and headers, in small parts."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body, headers = answers.get(self.path, (None, {}))
            self.send_response(404 if body is None else 200)
            body = body or b"{}"
            for name, value in (headers | {"content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(body), 100):
                self.wfile.write(body[start : start + 100])
                time.sleep(pause)

        do_POST = do_GET  # noqa: N815  (the name that http.server asks for)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def item(rows, **meta):
    told = {"id": "a", "prompt_tokens": 3, "cached_tokens": 0, "hidden_states": [rows]}
    return {"meta_info": told | meta}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (item([["1.0", "2.0"]] * 3), "no numbers"),
        (item([[True, False]] * 3), "no numbers"),
        (item([["1.0", None]] * 3), "no numbers"),
        (item([[1.0], [2.0, 3.0], [1.0]]), "no matrix"),
        (item([[1.0, 2.0]] * 4), "gave 4 rows"),
        (item([[1.0, 2.0]] * 3, id="b"), "for request 'b'"),
        (item([[1.0, 2.0]] * 3, prompt_tokens=4), "counts 4 tokens"),
        (item([[1.0, 2.0]] * 3, cached_tokens=None), "cached"),
        (item([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]]), "1 zero vectors"),
        ({"meta_info": 3}, "no meta_info"),
        (3, "no meta_info"),
    ],
)
def test_a_reply_of_sglang_that_is_no_states_is_refused(reply, said):
    with pytest.raises(UnsafeServerError, match=said):
        states_of(reply, TOKENS, "a", 2)


def test_values_that_are_not_finite_spoil_the_whole_prompt_and_no_check():
    states = states_of(item([[1.0, None], [1.0, 2.0], [1.0, 2.0]]), TOKENS, "a", 2)
    assert np.isnan(states).all(), "also the last row, which may be the embedding"
    check = StructureCheck("float32", lambda _: np.full(2, np.nan, np.float32))
    with pytest.raises(UnsafeServerError, match="not finite"):
        check.check([TOKENS], [np.ones((3, 2), np.float32)])


@pytest.mark.parametrize(
    "entries",
    [
        [(0, 0, 16), (1, 0, 16)],
        [(0, -16, 0), (1, 16, 32)],
        [(0, 8, 24), (1, 16, 32)],
        [(0, None, 16), (1, 16, 32)],
        [(0, 0, 16), (1, 16, 64)],
        [(0, 0, 16), (0, 16, 32)],
    ],
)
def test_no_prompt_gets_the_bytes_of_another(entries):
    data = [
        {"index": i, "start": a, "end": b, "shape": [4], "embed_dtype": "float32",
         "endianness": "little"}
        for i, a, b in entries
    ]  # fmt: skip
    metadata = json.dumps({"data": data, "usage": {"prompt_tokens": 6}})
    info = VllmInfo("1", "m", "m", None, None, None)
    with answering({"/v1/embeddings": (bytes(32), {"metadata": metadata})}) as url:
        client = ServerClient(url)
        with pytest.raises((UnsafeServerError, ServerError)):
            embeddings_of(client, info, [TOKENS, TOKENS])


def test_an_answer_that_trickles_ends_in_time():
    with answering({"/x": (b"x" * 5000, {})}, pause=0.05) as url:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer within 0.3 s"):
            ServerClient(url, timeout=0.3).get_json("/x")
        assert time.monotonic() - start < 2


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[1]", b"3", b"nonsense", b'"text"', b""])
def test_what_is_no_object_is_an_error(body, capsys):
    paths = ("/info", "/model_info", "/server_info", "/version", "/v1/models")
    with answering({path: (body, {}) for path in paths}) as url:
        with pytest.raises(ServerError, match=url):
            RemoteEncoder(url)
        assert main(["doctor", "--server", url]) == 2
    assert url in capsys.readouterr().err


@pytest.mark.parametrize(
    "answers",
    [
        {"/model_info": {}, "/server_info": {"version": 3}, "/v1/models": {"data": 3}},
        {"/model_info": {"a": 1}, "/server_info": {"version": "0.5.23"}, "/v1/models": {"data": 3}},
        {"/version": {"version": 1}, "/v1/models": {"data": None}},
        {"/version": {"version": 1}, "/v1/models": {"data": ["x"]}},
        {"/info": {"software": "ebm-encode", "identity": 3}},
    ],
)
def test_odd_words_of_a_server_are_an_error(answers, capsys):
    bodies = {path: (json.dumps(own).encode(), {}) for path, own in answers.items()}
    with answering(bodies) as url:
        assert main(["doctor", "--server", url]) in {1, 2}
    told = capsys.readouterr()
    assert url in told.err + told.out


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "ä", "a\x00"])
def test_a_token_that_cannot_be_sent_is_told_without_being_shown(token, monkeypatch, capsys):
    with pytest.raises(ArgumentError, match="token"):
        ServerClient("http://localhost:1", token=token)
    if "\x00" not in token and token:
        monkeypatch.setenv("EBM_ENCODE_TOKEN", token)
        assert main(["doctor", "--server", "http://127.0.0.1:1"]) == 2
        told = capsys.readouterr().err
        assert "EBM_ENCODE_TOKEN" in told
        assert token not in told


@pytest.mark.parametrize("url", ["http://[::1", "localhost:1", "http://", "http://u:p@x", ""])
def test_what_is_no_address_is_told(url):
    with pytest.raises(ArgumentError, match="expected a URL"):
        ServerClient(url)


@pytest.mark.parametrize(
    ("rows", "digests", "said"),
    [
        ([[0, 0], [1, 2]], [7, 8], "zero"),
        ([[1, 2], [1, 2]], [7, 8], "equal"),
        ([[0, 0], [1, 2]], [None, None], "zero"),
        ([[1, 2], [1, 2]], [7, 7], None),
        ([[1, 2], [1, 2]], [7, None], None),  # from its cache, where digests are not kept
    ],
)
def test_zero_and_equal_rows_of_our_server_are_refused(llama, rows, digests, said):
    identity = Encoder.load(llama).identity
    limits = {"max_texts": 9, "queue_texts": 9, "max_body_bytes": 10**6}
    info = {"software": "ebm-encode", "identity": json.loads(identity.to_json()), "dim": 2}
    info |= {"identity_digest": identity.digest, "state_format": "x", "limits": limits}
    found = Encoded(np.array(rows, np.float32), ["ok"] * 2, [1] * 2, [False] * 2, digests, [""] * 2)
    stream = bytes(as_arrow(found, Origin(identity.digest, "i")))
    answers = {"/info": (json.dumps(info).encode(), {})}
    answers["/encode"] = (stream, {"ebm-identity": identity.digest})
    with answering(answers) as url, RemoteEncoder(url) as remote:
        for ask in (
            lambda: remote.encode(["a", "b"]),
            lambda: remote.encode_tokens([TOKENS, TOKENS[:2]]),
        ):
            if said is None:
                assert (ask() == rows).all()
                continue
            with pytest.raises(UnsafeServerError, match=said):
                ask()


def test_no_damage_of_an_answer_is_followed(llama, states):
    """Damaged offsets in an Arrow stream lead out of its memory, and ended the process."""
    with served(llama) as server:
        info = httpx2.get(f"{server.url}/info").content
        arrow = {"accept": "application/vnd.apache.arrow.stream"}
        right = httpx2.post(f"{server.url}/encode", json={"texts": states[:3]}, headers=arrow)
    headers = {"ebm-identity": right.headers["ebm-identity"]}
    rng = random.Random(0)
    answers = {"/info": (info, {})}
    with answering(answers) as url, RemoteEncoder(url) as remote:
        answers["/encode"] = (right.content, headers)
        whole = remote.encode(states[:3])
        for _ in range(150):
            body = bytearray(right.content)
            for _ in range(rng.choice([1, 3, 10])):
                body[rng.randrange(len(body))] = rng.randrange(256)
            answers["/encode"] = (bytes(body), headers)
            with contextlib.suppress(EbmEncodeError):
                assert remote.encode(states[:3]).shape == whole.shape
