"""The stand-in's process: python -m servers.stand_in; it writes its address to standard output."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servers.stand_in import sglang_defects
from servers.stand_in import vllm as vllm_api
from servers.stand_in.model import Model
from servers.stand_in.replies import OF_CONNECTIONS, Cut, Died, Reply, Settings, as_json, as_text
from servers.stand_in.sglang import Sglang

SAMPLES = Path(__file__).parents[2] / "data/servers"
ENCODING = {"/generate", "/v1/embeddings", "/pooling"}


class Stage:
    """The server that is played now, and what it was asked."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.lock = threading.Lock()
        self.settings = Settings()
        self.server: Any = None
        self.recorded: dict[str, Any] | None = None
        self.dead = False
        self.log: list[dict[str, Any]] = []
        self.asked = 0
        self.running = 0
        self.most = 0

    def set(self, given: dict[str, Any]) -> None:
        settings = Settings(**given)
        kind = vllm_api.DEFECTS if settings.kind == "vllm" else sglang_defects.DEFECTS
        if settings.defect and settings.defect not in {*kind, *OF_CONNECTIONS}:
            message = f"no defect {settings.defect!r}; there are {sorted({*kind, *OF_CONNECTIONS})}"
            raise ValueError(message)
        if settings.model not in self.models:
            self.models[settings.model] = Model(settings.model)
        samples = json.loads((SAMPLES / f"{settings.kind}.json").read_text())
        made = vllm_api.Vllm if settings.kind == "vllm" else Sglang
        with self.lock:
            self.settings, self.dead, self.log, self.asked = settings, False, [], 0
            self.most = 0
            self.recorded = samples["replies"][settings.replay] if settings.replay else None
            self.server = made(settings, self.models[settings.model], samples["info"])

    def status(self) -> dict[str, Any]:
        free = self.server.free_memory() if self.server else 0
        return {"requests": self.log, "dead": self.dead, "free_memory": free, "most": self.most}

    def enter(self, method: str, path: str, body: Any) -> int:
        """Notes a request; gives its number among the encoding ones."""
        with self.lock:
            self.log.append({"method": method, "path": path, "body": body})
            self.running += 1
            self.most = max(self.most, self.running)
            number = self.asked
            self.asked += path in ENCODING
            return number

    def leave(self) -> None:
        with self.lock:
            self.running -= 1

    def act(
        self, method: str, path: str, query: dict[str, list[str]], body: Any, number: int
    ) -> Reply:
        """The reply, with the defects of connections."""
        s, server = self.settings, self.server
        if self.recorded and path in ENCODING:
            return replayed(self.recorded)
        bad = s.defect if path in ENCODING and sglang_defects.due(s, number) else ""
        if bad in {"hang", "slow"}:
            end = time.monotonic() + s.seconds
            while time.monotonic() < end and self.settings is s:
                time.sleep(0.02)
            if bad == "hang":
                raise Cut(Reply())
        if bad == "gone":
            raise Died
        if bad.startswith("error_"):
            status = int(bad.removeprefix("error_"))
            return as_text("Internal Server Error", status)
        if bad == "not_json":
            return Reply(200, b"<html>a proxy's page</html>", "text/html")
        reply = server.answer(method, path, query, body)
        if bad in {"death", "cut_reply"}:
            self.dead = bad == "death"
            raise Cut(reply)
        return reply


def replayed(seen: dict[str, Any]) -> Reply:
    """A recorded reply as it was."""
    kind = seen["headers"]["content-type"]
    if kind == "application/octet-stream":
        headers = {k: v for k, v in seen["headers"].items() if k == "metadata"}
        return Reply(seen["status"], bytes.fromhex(seen["reply"]), kind, headers)
    return as_json(seen["reply"], seen["status"])


STAGE = Stage()


class Handler(BaseHTTPRequestHandler):
    """One connection; replies leave in one write, so that none waits for an acknowledgement."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _respond(self, reply: Reply, length: int | None = None) -> None:
        head = f"HTTP/1.1 {reply.status} stand-in\r\ncontent-type: {reply.kind}\r\n"
        head += f"content-length: {length or len(reply.body)}\r\nserver: uvicorn\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        self.wfile.write(head.encode() + b"\r\n" + reply.body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _control(self, method: str, raw: bytes) -> None:
        if method == "POST":
            try:
                STAGE.set(json.loads(raw))
            except (TypeError, ValueError, OSError) as error:
                self._respond(as_text(f"{type(error).__name__}: {error}", 400))
                return
        self._respond(as_json(STAGE.status()))

    def _any(self, method: str) -> None:
        url, raw = urlsplit(self.path), self._body()
        if url.path == "/_stand_in":
            self._control(method, raw)
            return
        if STAGE.dead or STAGE.server is None:
            self.close_connection = True
            return
        body = json.loads(raw) if raw else None
        number = STAGE.enter(method, url.path, body)
        try:
            # Left before the reply goes out, since the next request may come before that is over.
            try:
                reply = STAGE.act(method, url.path, parse_qs(url.query), body, number)
            finally:
                STAGE.leave()
            self._respond(reply)
        except Died:
            STAGE.dead = self.close_connection = True
        except Cut as cut:
            half = cut.reply.body[: len(cut.reply.body) // 2]
            if half:
                shown = Reply(200, half, cut.reply.kind, cut.reply.headers)
                self._respond(shown, len(cut.reply.body))
            self.close_connection = True

    def do_GET(self) -> None:
        self._any("GET")

    def do_POST(self) -> None:
        self._any("POST")


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    # Ends with the process that started it, whose end closes this pipe.
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
