"""A small inference server for tests of iterations: it answers which model it has.

    server.py PORT MODEL [FAULTS]

FAULTS is a file of words; each counts once when the server is started (and is taken off the file)
but those that last: `slow SECONDS` (before it listens), `wrong` (has another model), `crash` (ends
at once), `dies SECONDS` (ends after it answered first), `turns SECONDS` (has another model after it
answered first), `stubborn` (SIGTERM does nothing), `unstoppable` (the same, and lasts), `lingers
SECONDS` (answers so long after SIGTERM, and writes the file `told`).
"""

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def linger(seconds: float) -> None:
    late = threading.Timer(seconds, os._exit, [0])

    def end(*_):
        Path("told").touch()
        if not late.is_alive():
            late.start()

    signal.signal(signal.SIGTERM, end)


def main(port: int, model: str, faults: list[str]) -> None:
    named = {word.split()[0]: word.split()[-1] for word in faults}
    if "crash" in named:
        sys.exit("no memory")
    time.sleep(float(named.get("slow", 0)))
    if "stubborn" in named or "unstoppable" in named:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "lingers" in named:
        linger(float(named["lingers"]))
    told = ["models/another" if "wrong" in named else model]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"data": [{"id": told[-1], "content": LOADED}]}).encode()
            found = self.path == "/v1/models"
            self.send_response(200 if found else 404)
            self.send_header("content-length", str(len(body) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(body)
            if "dies" in named and found:
                threading.Timer(float(named["dies"]), os._exit, [1]).start()
            if "turns" in named and found:
                threading.Timer(float(named["turns"]), told.append, ["models/another"]).start()

        def log_message(self, *_):
            """Says nothing."""

    http.server.ThreadingHTTPServer.allow_reuse_address = True
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


WEIGHTS = Path(sys.argv[2], "weights")
LOADED = WEIGHTS.read_text() if WEIGHTS.exists() else ""
"""What the model's folder held when the server was started."""

if __name__ == "__main__":
    given = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    words = given.read_text().splitlines() if given and given.exists() else []
    if words and not words[0].startswith("unstoppable"):
        given.write_text("\n".join(words[1:]))
    main(int(sys.argv[1]), sys.argv[2], words[:1])
