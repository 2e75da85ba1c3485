"""A proxy in front of a real server that changes requests and what the server says of itself."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

Change = Callable[[str, Any], Any]


@contextlib.contextmanager
def changed(
    url: str, *, request: Change | None = None, reply: Change | None = None
) -> Iterator[str]:
    """The address of a proxy; both functions get the path and the parsed JSON, and give another."""
    with httpx2.Client(base_url=url, timeout=300) as upstream:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def forward(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                body = json.loads(raw) if raw else None
                if body is not None and request:
                    body = request(self.path, body)
                came = upstream.request(self.command, self.path, json=body)
                content = came.content
                if reply and came.headers.get("content-type", "").startswith("application/json"):
                    content = json.dumps(reply(self.path, came.json())).encode()
                self.send_response(came.status_code)
                for name in ["content-type", "metadata"]:
                    if name in came.headers:
                        self.send_header(name, came.headers[name])
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = forward  # noqa: N815

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


def without_cure(_path: str, body: Any) -> Any:
    """The request as a client sends it that does not know what the prefix cache does."""
    cures = {"extra_key", "return_logprob", "logprob_start_len"}
    return {key: value for key, value in body.items() if key not in cures}
