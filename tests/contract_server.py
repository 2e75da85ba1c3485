"""A server of the contract of `ebm-encode serve`, made of http.server and pyarrow."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa

from ebm_encode import Encoder

STREAM = "application/vnd.apache.arrow.stream"


@dataclass
class Serving:
    """What a server has and does; may be changed while it runs."""

    encoder: Encoder
    token: str | None = None
    dies: bool = False
    """Whether it dies at the next request for embeddings."""
    change: Callable[[list[dict]], list[dict]] = lambda rows: rows
    """What is done to the rows of an answer."""
    after: Callable[["Serving"], object] = bool
    """What happens after each answer with embeddings."""
    url: str = ""
    sizes: list[int] = field(default_factory=list)
    """States of each request."""


def rows_of(encoder, texts):
    """The rows of a right answer."""
    out = np.empty((len(texts), encoder.dim), np.float32)
    reports = encoder.encode_into(texts, out)
    return [
        {
            "status": report.status,
            "tokens": report.tokens,
            "truncated": report.truncated,
            "token_digest": report.token_digest,
            "reason": report.reason,
            "embedding": out[i].tolist() if report.status == "ok" else None,
        }
        for i, report in enumerate(reports)
    ]


def stream(encoder, rows):
    """Rows as an Arrow stream."""
    kinds = {
        "status": pa.string(),
        "tokens": pa.uint32(),
        "truncated": pa.bool_(),
        "token_digest": pa.uint64(),
        "reason": pa.string(),
        "embedding": pa.list_(pa.float32(), encoder.dim),
    }
    said = {
        "ebm-encode.identity": encoder.identity.digest(),
        "ebm-encode.dim": str(encoder.dim),
        "ebm-encode.instance": str(id(encoder)),
    }
    schema = pa.schema(list(kinds.items()), said)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return sink.getvalue().to_pybytes()


def info(encoder):
    """What `/info` says."""
    return {
        "software": "ebm-encode",
        "version": "0.1.0",
        "instance": str(id(encoder)),
        "identity": json.loads(encoder.identity.to_json()),
        "identity_digest": encoder.identity.digest(),
        "dim": encoder.dim,
        "model": "a model",
        "engine": "an engine",
        "state_format": "as-given",
        "limits": {
            "max_texts": 16,
            "max_body_bytes": 1 << 20,
            "max_tokens": 2048,
            "queue_texts": 4096,
            "timeout_seconds": 60,
        },
        "versions": {},
    }


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def do_GET(self):
        encoder = self.server.serving.encoder
        bodies = {"/health": {"status": "ready"}, "/info": info(encoder)}
        self.answer(200, "application/json", json.dumps(bodies[self.path]).encode())

    def do_POST(self):
        serving = self.server.serving
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if serving.dies:
            self.server.socket.close()
            threading.Thread(target=self.server.shutdown).start()
            self.close_connection = True
            return
        assert (self.path, list(body), self.headers["accept"]) == ("/encode", ["texts"], STREAM)
        serving.sizes.append(len(body["texts"]))
        rows = serving.change(rows_of(serving.encoder, body["texts"]))
        self.answer(200, STREAM, stream(serving.encoder, rows))
        serving.after(serving)

    def answer(self, status, kind, body):
        serving = self.server.serving
        if serving.token and self.headers["authorization"] != f"Bearer {serving.token}":
            error = {"message": "no token", "type": "t", "code": "c", "hint": ""}
            status, kind, body = 401, "application/json", json.dumps({"error": error}).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("ebm-identity", serving.encoder.identity.digest())
        self.send_header("ebm-instance", str(id(serving.encoder)))
        self.send_header("x-request-id", "r")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing."""


@contextmanager
def serve(encoder, **changes):
    """A running server, on a free port."""
    serving = Serving(encoder, **changes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.serving = serving
    serving.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
