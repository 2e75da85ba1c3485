"""`ebm-prover search` when something fails: what was found is kept, and the fault is said once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from support import PROVER, ROOT


def prover(*arguments, **options):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, *arguments)]
    defaults = {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(command, check=False, **(defaults | options))


def completion(request, tactics=("exact True.intro",), log_prob=-0.5):
    """What vLLM answers to a request: these tactics in turn."""
    texts = [tactics[place % len(tactics)] for place in range(request["n"])]
    choices = [
        {
            "text": text,
            "finish_reason": "stop",
            "logprobs": {"tokens": [text], "token_logprobs": [log_prob]},
        }
        for text in texts
    ]
    return 200, json.dumps({"choices": choices})


@contextlib.contextmanager
def serving(answer, models=("tiny",)):
    """A server whose completions a function answers, by number and request; yields its address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.say(200, json.dumps({"data": [{"id": name} for name in models]}))

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(request)
            self.say(*answer(len(asked), request))

        def say(self, status, text):
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def theorems(tmp_path):
    def write(**statements):
        path = tmp_path / "theorems.jsonl"
        lines = [json.dumps({"theorem_name": n, "statement": s}) for n, s in statements.items()]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def asking(path, url, *arguments):
    return ("search", "--theorems", path, "--policy", "http", "--policy-url", url, *arguments)


def test_what_finished_is_on_disk_while_another_search_goes_on(theorems, tmp_path):
    over = threading.Event()

    def answer(_, request):
        if "False" in request["prompt"]:
            over.wait(120)
        return completion(request)

    output = tmp_path / "t.parquet"
    path = theorems(quick="True", slow="False")
    with serving(answer) as url:
        command = [PROVER, *asking(path, url, "--threads", "2", "--output", output)]
        process = subprocess.Popen(
            [str(part) for part in command],
            stderr=subprocess.PIPE,
            env=os.environ | {"VIRTUAL_ENV": sys.prefix},
        )
        partial = tmp_path / "t.parquet.partial"
        try:
            until = time.monotonic() + 60
            while not any(partial.glob("searches-*.parquet")) and time.monotonic() < until:
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            over.set()
    shards = list(partial.glob("searches-*.parquet"))
    assert shards, "the finished search waits for the next to finish"
    assert pl.read_parquet(shards[0])["theorem_name"].unique().to_list() == ["quick"]


def test_a_proof_is_kept_when_the_policy_fails_after_it(theorems, tmp_path):
    def answer(number, request):
        if number == 1:
            return completion(request, ("exact fun h => h", "intro h"))
        return 409, json.dumps({"error": {"message": "out of order"}})

    output = tmp_path / "t.parquet"
    limits = ("--record-after-proof", "5", "--output", output, "--json")
    with serving(answer) as url:
        done = prover(*asking(theorems(same="(p : Prop) : p → p"), url, *limits))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["solved"], report["failed"], report["cut_short"]) == (1, 0, 1)
    assert report["theorems"][0]["proof"] == ["exact fun h => h"]
    assert "out of order" in done.stderr
    frame = pl.read_parquet(output)
    assert frame["tactic_applied"].to_list() == ["", "exact fun h => h", "intro h"]
    assert frame["is_proof_complete"].to_list() == [False, True, False]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_all_searches_at_once(theorems, status):
    asked = []

    def answer(_, request):
        asked.append(request)
        return status, json.dumps({"error": {"message": "not you"}})

    path = theorems(**{f"t{number}": "True" for number in range(40)})
    with serving(answer) as url:
        done = prover(*asking(path, url, "--threads", "2"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("not you") == 1
    assert ("--policy-url" if status == 404 else "--policy-api-key") in done.stderr
    assert len(asked) <= 4


@pytest.mark.parametrize("models", [[], ["one", "two"]])
def test_what_a_server_serves_is_said_once_and_with_the_option(theorems, models):
    with serving(lambda _, request: completion(request), models) as url:
        done = prover(*asking(theorems(t="True"), url))
    assert done.returncode == 2
    assert done.stderr.count("serves") == 1
    assert "--policy-server-model" in done.stderr


@pytest.mark.parametrize("url", ["ftp://x", "nothing", "http://user:secret@x"])
def test_a_wrong_address_is_said_once_and_with_the_option(theorems, url):
    done = prover(*asking(theorems(t="True"), url))
    assert done.returncode == 2
    assert done.stderr.startswith("ebm-prover: --policy-url: ")
    assert done.stderr.count("--policy-url: ") == 1
    assert "base_url" not in done.stderr
    assert "secret" not in done.stderr


def test_a_search_is_not_resumed_with_another_endpoint(theorems, tmp_path):
    output = ("--output", tmp_path / "t.parquet")
    path = theorems(t="True")
    with serving(lambda _, request: completion(request)) as url:
        assert prover(*asking(path, url, *output)).returncode == 0
        done = prover(*asking(path, url, *output, "--resume", "--policy-api", "chat"))
    assert done.returncode == 2
    assert "chat" in done.stderr


def test_records_without_log_probabilities_are_no_silent_matter(tmp_path):
    frame = pl.read_parquet(ROOT / "searches" / "lean_core.parquet")
    bare, wrong = tmp_path / "bare.parquet", tmp_path / "wrong.parquet"
    frame.drop("llm_log_prob").write_parquet(bare)
    full = ROOT / "searches" / "lean_core.parquet"
    done = prover("search", "--trajectories", full, bare, "--first", "1")
    assert "1 of 2 files have no log-probabilities" in done.stderr
    done = prover("search", "--trajectories", full, "--first", "1")
    assert "log-probabilities" not in done.stderr
    frame.with_columns(llm_log_prob=pl.lit(0.5)).write_parquet(wrong)
    done = prover("search", "--trajectories", wrong, "--first", "1")
    assert done.returncode == 2
    assert "llm_log_prob is 0.5, expected at most 0" in done.stderr
