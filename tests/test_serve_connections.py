"""Clients that cost much and ask for little: idle, slow, gone, and those that do not read."""

import json
import resource
import socket
import threading
import time
from contextlib import ExitStack

import httpx2
import psutil
import pytest
import uvicorn

from ebm_encode.serve.connections import Connections
from matrix import first
from served import served

HEAD = b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(llama):
    with served(llama, files=(256, 300)) as found:
        yield found


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def healthy(server):
    return httpx2.get(f"{server.url}/health", timeout=60).status_code == 200


def test_idle_connections_keep_nobody_out(server):
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(400)]
        assert healthy(server)
        half = stack.enter_context(connect(server))
        half.sendall(b"GET /health HTT")
        again = stack.enter_context(connect(server))
        again.sendall(HEALTH)
        assert b" 200 " in again.recv(1000)
        again.sendall(b"GET /health HTT")
        # All are closed, the last ones by the time limit.
        for connection in (*held, half, again):
            try:
                while connection.recv(1000):
                    pass
            except ConnectionResetError:
                pass
        assert healthy(server)
    assert psutil.Process(server.process.pid).rlimit(resource.RLIMIT_NOFILE) == (300, 300)
    told = [line for line in server.log if "connections" in line]
    assert "closed while idle" in "".join(told)
    assert len(told) < 10


def test_bodies_of_all_connections_together_are_bounded(llama):
    with served(llama, "--max-body-mib", 1) as server, ExitStack() as stack:
        part = b'{"texts": ["' + b"a" * (2**20 - 1000)
        refused = 0
        for _ in range(30):
            slow = stack.enter_context(connect(server))
            slow.sendall(HEAD + b"content-length: 1048576\r\n\r\n" + part)
            slow.settimeout(0.5)
            try:
                refused += b" 429 " in slow.recv(1000)
            except TimeoutError:
                continue
        assert refused >= 10
        answer = httpx2.post(f"{server.url}/encode", json={"texts": ["a" * 200_000]})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert healthy(server)
        stack.close()
        while httpx2.post(f"{server.url}/encode", json={"texts": ["a"]}).status_code == 429:
            time.sleep(0.1)


def test_an_answer_that_nobody_reads_ends_its_connection():
    size = 30 * 2**20
    connections = Connections(10, size, look_seconds=0.5)
    rooms = []

    async def app(scope, _receive, send):
        if scope["type"] == "lifespan":
            return
        rooms.append(connections.has_room(size))
        length = size if scope["path"] == "/large" else 2
        headers = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"a" * length})

    config = uvicorn.Config(app, port=0, log_config=None, http=connections.protocol())
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with socket.socket() as lazy, httpx2.Client() as client:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(listening.getsockname())
        lazy.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        while not rooms:
            time.sleep(0.01)
        client.get(url)
        assert rooms == [True, False]  # what is not sent is held
        while not rooms[-1]:
            time.sleep(0.1)
            client.get(url)
        taken = 0
        try:
            while part := lazy.recv(2**20):
                taken += len(part)
        except ConnectionResetError:
            pass
        assert taken < size
        # Who reads, however slowly, gets it all.
        with client.stream("GET", f"{url}/large") as answer:
            taken = 0
            for part in answer.iter_bytes(2**20):
                taken += len(part)
                time.sleep(0.05)
        assert taken == size
    server.should_exit = True
    thread.join()


def encoded(server):
    name = "ebm_encode_encoder_encoded "
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize("kind", first(["texts", "tokens"]))
def test_states_of_a_client_that_is_gone_are_dropped_unless_they_have_begun(llama, kind):
    long = ["\n".join(f"x{k}{i} : ℕ" for k in range(100)) + "\n⊢ True" for i in range(240)]
    given = long if kind == "texts" else [[*range(5, 300), i] for i in range(240)]
    body = json.dumps({kind: given}).encode()
    request = HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body
    with served(llama, "--batch-states", 8, "--queue-texts", 720) as server:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(server)).sendall(request)
            while b"waiting_states 720" not in httpx2.get(f"{server.url}/metrics").content:
                pass
        # Only the first of token ids has begun, and the first 32 of each with texts.
        while b"waiting_states 720" in httpx2.get(f"{server.url}/metrics").content:
            pass
        answer = httpx2.post(f"{server.url}/encode", json={"texts": ["a"] * 400}, timeout=60)
        assert answer.status_code == 200
        server.wait_idle()
        if kind == "texts":
            assert encoded(server) < 200
        assert 'endpoint="/encode",status="499"' in httpx2.get(f"{server.url}/metrics").text
