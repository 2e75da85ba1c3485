"""`ebm-prover search`: options that mean nothing, or would do harm, are refused before anything starts."""

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
