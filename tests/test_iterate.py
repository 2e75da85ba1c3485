"""Iterations as users write them: configuration, plan, our steps, memory, notes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from ebm_encode import open_cache
from ebm_encode.cli.iterating import iteration_of
from ebm_encode.errors import ArgumentError, InputError, PipelineError, UnsafeServerError
from ebm_encode.pipeline.config import folder_of, read_config
from ebm_encode.pipeline.iteration import Iteration
from ebm_encode.pipeline.plan import command_digest
from ebm_encode.pipeline.positions import key_lines
from ebm_encode.pipeline.records import Record
from matrix import first
from recorded_searches import searches, write_rows

_USERS = """
[iteration]
folder = "work"
[steps.one]
command = ["sh", "-c", "echo one >> runs; cat in.txt > {folder}/one.txt"]
inputs = ["in.txt"]
outputs = ["{folder}/one.txt"]
[steps.two]
command = ["sh", "-c", "echo two >> runs; cat {folder}/one.txt > two.txt"]
inputs = ["{folder}/one.txt"]
outputs = ["two.txt"]
"""


@pytest.fixture
def users(tmp_path):
    """A configuration of two steps of the user's."""
    (tmp_path / "in.txt").write_text("1")
    path = tmp_path / "iteration.toml"
    path.write_text(_USERS)
    return path


def runs(path):
    found = path.parent / "runs"
    return found.read_text().split() if found.exists() else []


def summary(run_cli, path, *options, code=0):
    found, out, err = run_cli("iterate", path, "--json", *options)
    assert found == code, err
    return json.loads(out)


def states_of(found):
    return {step["name"]: step["state"] for step in found["steps"]}


# What is done and what is not.


def test_steps_run_once_and_again_when_something_they_need_changes(run_cli, users):
    assert states_of(summary(run_cli, users)) == {"one": "done", "two": "done"}
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "kept"}
    assert runs(users) == ["one", "two"]
    os.utime(users.parent / "in.txt")  # another time, the same content
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "kept"}
    (users.parent / "in.txt").write_text("2")
    assert states_of(summary(run_cli, users)) == {"one": "done", "two": "done"}
    assert (users.parent / "two.txt").read_text() == "2"
    users.write_text(_USERS.replace("cat {folder}/one.txt >", "cat < {folder}/one.txt >"))
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "done"}
    (users.parent / "two.txt").unlink()
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "done"}
    (users.parent / "work" / "one.txt").write_text("by hand")
    found = summary(run_cli, users)
    assert states_of(found) == {"one": "done", "two": "kept"}  # it gives the same again
    assert "changed by something else" in found["steps"][0]["why"]


def test_the_order_is_that_of_the_files_not_of_the_configuration(run_cli, users):
    head, one, two = _USERS.partition("[steps.one]")
    one, mark, two = two.partition("[steps.two]")
    users.write_text(head + mark + two + "[steps.one]" + one)
    summary(run_cli, users)
    assert runs(users) == ["one", "two"]


def test_a_dry_run_tells_why_and_changes_nothing(run_cli, users):
    code, out, _ = run_cli("iterate", users, "--dry-run")
    assert code == 0
    assert "never done" in out
    assert "one will run" in out
    assert not (users.parent / "work").exists()
    summary(run_cli, users)
    before = sorted(users.parent.rglob("*"))
    (users.parent / "in.txt").write_text("2")
    code, out, _ = run_cli("iterate", users, "--dry-run", "--json")
    steps = {step["name"]: step for step in json.loads(out)["steps"]}
    assert steps["one"]["why"] == [f"input {users.parent / 'in.txt'} changed"]
    assert steps["two"] == {"name": "two", "runs": True, "why": ["one will run"]}
    assert sorted(users.parent.rglob("*")) == before
    assert runs(users) == ["one", "two"]


def test_a_range_of_steps(run_cli, users):
    code, _, err = run_cli("iterate", users, "--from", "two")
    assert code == 2
    assert "step one comes before, and is not done: never done" in err
    assert states_of(summary(run_cli, users, "--until", "one")) == {"one": "done"}
    assert states_of(summary(run_cli, users, "--from", "two")) == {"two": "done"}
    for options, said in [
        (("--from", "three"), "--from three: no such step"),
        (("--from", "two", "--until", "one"), "--from two comes after --until one"),
    ]:
        code, _, err = run_cli("iterate", users, *options)
        assert code == 2
        assert said in err


def test_a_step_that_leaves_its_outputs_as_they_were_is_not_done(run_cli, users):
    summary(run_cli, users)
    users.write_text(_USERS.replace("cat in.txt > {folder}/one.txt", "true"))
    for output in ("work/one.txt", "two.txt"):
        os.utime(users.parent / output, (1, 1))
    time.sleep(1.1)
    found = summary(run_cli, users, code=1)
    assert "left its outputs as they were" in found["error"]
    users.write_text(_USERS.replace("cat in.txt > {folder}/one.txt", "rm {folder}/one.txt"))
    assert "did not write" in summary(run_cli, users, code=1)["error"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": 1}', "\xff", '{"step": "one"}'])
def test_a_damaged_record_is_told_and_counts_as_none(run_cli, users, content):
    summary(run_cli, users)
    record = users.parent / "work" / "records" / "one.json"
    record.write_text(content)
    code, out, err = run_cli("iterate", users, "--json")
    assert code == 0, err
    assert f"{record} is damaged" in err
    assert states_of(json.loads(out)) == {"one": "done", "two": "kept"}


def test_a_record_of_another_version_is_read(run_cli, users):
    summary(run_cli, users)
    record = users.parent / "work" / "records" / "one.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"more": 1}))
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "kept"}


@pytest.mark.parametrize("value", ["NaN", "1e999", f"1{'0' * 400}", '{"a":' * 9000, '"3"', "true"])
def test_figures_that_are_none_are_left_out(run_cli, users, value):
    (users.parent / "printed").write_text(f'{{"solved": {value}}}\n')
    users.write_text(_USERS.replace("echo one >> runs", "cat printed"))
    found = summary(run_cli, users)
    assert found["steps"][0]["figures"] == {}
    assert run_cli("iterate", users)[0] == 0


def test_links_to_folders_are_followed_and_pipes_refused(run_cli, users):
    real = users.parent / "real"
    real.mkdir()
    (real / "f").write_text("1")
    (users.parent / "in").mkdir()
    (users.parent / "in" / "link").symlink_to(real)
    (real / "loop").symlink_to(real)
    users.write_text(_USERS.replace('inputs = ["in.txt"]', 'inputs = ["in.txt", "in"]'))
    summary(run_cli, users)
    assert states_of(summary(run_cli, users))["one"] == "kept"
    (real / "f").write_text("2")
    assert states_of(summary(run_cli, users))["one"] == "done"
    os.mkfifo(real / "pipe")  # no content
    assert states_of(summary(run_cli, users))["one"] == "kept"
    users.write_text(_USERS.replace('["in.txt"]', '["in.txt", "real/pipe"]'))
    code, _, err = run_cli("iterate", users)
    assert code == 1
    assert "neither a file nor a folder" in err


def test_a_step_that_takes_half_an_output_for_a_whole_one(run_cli, users):
    """Killed in its first run, it skips what is there in the second."""
    skips = "[ -e {folder}/one.txt ] || (echo half > {folder}/one.txt; kill -9 $$)"
    users.write_text(_USERS.replace("cat in.txt > {folder}/one.txt", skips))
    assert "was ended by signal SIGKILL" in summary(run_cli, users, code=1)["error"]
    os.utime(users.parent / "work" / "one.txt", (1, 1))
    time.sleep(1.1)
    assert "left its outputs as they were" in summary(run_cli, users, code=1)["error"]


def test_outputs_that_the_user_touches_are_right(run_cli, users):
    output = users.parent / "work" / "one.txt"
    output.parent.mkdir()
    output.write_text("made before")
    os.utime(output, (1, 1))
    users.write_text(_USERS.replace("cat in.txt > {folder}/one.txt", "true"))
    time.sleep(1.1)
    for _ in range(2):
        assert "or `touch` them if they are right" in summary(run_cli, users, code=1)["error"]
    output.touch()
    time.sleep(1.5)
    assert states_of(summary(run_cli, users)) == {"one": "done", "two": "done"}


def test_a_refusal_does_not_excuse_half_an_output_later(run_cli, users):
    """Refused, removed as the hint says, killed in the middle, skipped."""
    output = users.parent / "work" / "one.txt"
    skips = "[ -e {folder}/one.txt ] || (echo half > {folder}/one.txt; kill -9 $$)"
    users.write_text(_USERS.replace("cat in.txt > {folder}/one.txt", skips))
    output.parent.mkdir()
    output.write_text("old")
    assert "left its outputs as they were" in summary(run_cli, users, code=1)["error"]
    output.unlink()
    assert "was ended by signal SIGKILL" in summary(run_cli, users, code=1)["error"]
    for _ in range(2):
        assert "left its outputs as they were" in summary(run_cli, users, code=1)["error"]


def test_an_output_may_be_a_link(run_cli, users):
    (users.parent / "work").mkdir()
    (users.parent / "work" / "one.txt").symlink_to(users.parent / "elsewhere")
    (users.parent / "elsewhere").write_text("old")
    time.sleep(1.1)
    summary(run_cli, users)
    assert (users.parent / "elsewhere").read_text() == "1"
    assert states_of(summary(run_cli, users)) == {"one": "kept", "two": "kept"}


@pytest.mark.parametrize("pattern", ["*.parquet", "t/*.parquet", "**/*.parquet", "t"])
def test_a_changed_model_is_no_growth_wherever_trajectories_are(tmp_path, pattern):
    """Which of two changes has all embeddings made again."""
    path = tmp_path / "c.toml"
    path.write_text(
        f"[steps.encode.options]\nmodel-path = 't/m'\ntrajectories = '{pattern}'\n"
        "output = 'o.cache'\n"
    )
    (tmp_path / "t" / "m").mkdir(parents=True)
    (tmp_path / "t" / "m" / "x.parquet").write_text("weights")
    for folder in (tmp_path, tmp_path / "t"):
        (folder / "1.parquet").write_text("states")
    found, _ = iteration_of(path, [])
    (verdict,) = found.plan()
    Record("encode", command_digest(verdict.step), "", verdict.inputs, {}, 1.0, "").write(tmp_path)
    for folder in (tmp_path, tmp_path / "t"):
        (folder / "2.parquet").write_text("more states")
    (grown,) = found.plan()
    assert grown.changed
    assert not grown.replaces
    (tmp_path / "t" / "m" / "x.parquet").write_text("other weights")
    (other,) = found.plan()
    assert other.replaces


def test_brackets_in_the_name_of_the_project_and_its_files(run_cli, users):
    folder = users.parent / "run [1]*"
    folder.mkdir()
    (folder / "a[b].txt").write_text("1")
    path = folder / "c.toml"
    path.write_text(_USERS.replace("in.txt", "a[b].txt").replace("cat a[b].txt", "cat 'a[b].txt'"))
    assert states_of(summary(run_cli, path)) == {"one": "done", "two": "done"}
    path.write_text(path.read_text().replace('["a[b].txt"]', '["*[[]b].txt"]'))
    assert states_of(summary(run_cli, path, "--until", "one")) == {"one": "kept"}
    (folder / "a[b].txt").write_text("2")
    assert states_of(summary(run_cli, path)) == {"one": "done", "two": "done"}


def test_a_folder_that_another_step_writes_in_is_needed_too(run_cli, users):
    users.write_text(
        "[steps.a]\ncommand = ['sh', '-c', 'ls m > a']\ninputs = ['m']\noutputs = ['a']\n"
        "[steps.b]\ncommand = ['sh', '-c', 'echo > m/new']\noutputs = ['m/new']\n"
    )
    (users.parent / "m").mkdir()
    summary(run_cli, users)
    assert (users.parent / "a").read_text() == "new\n"
    assert states_of(summary(run_cli, users)) == {"b": "kept", "a": "kept"}


def test_notes_go_out_at_the_end(run_cli, users):
    told = 'echo "$EBM_ENCODE_STATE|$EBM_ENCODE_MESSAGE|$EBM_ENCODE_SUMMARY" >> told'
    note = users.parent / "note.sh"
    note.write_text(f"#!/bin/sh\ncd {users.parent}\n{told}\n")
    note.chmod(0o755)
    summary(run_cli, users, "--notify", note)
    users.write_text(_USERS.replace("cat in.txt", "false && cat in.txt"))
    summary(run_cli, users, "--notify", note, code=1)
    first, second, *_ = (users.parent / "told").read_text().splitlines()
    assert first == f"done||{users.parent / 'work' / 'summary.json'}"
    assert second.startswith("failed|step one: exits with 1")
    code, _, err = run_cli("iterate", users, "--notify", "false")
    assert code == 1
    assert "--notify: exits with 1" in err


def test_the_example_is_a_right_configuration(run_cli, tmp_path):
    path = tmp_path / "new.toml"
    code, out, _ = run_cli("iterate", path, "--init")
    assert code == 0
    assert "--dry-run" in out
    code, out, _ = run_cli("iterate", path, "--dry-run", "--json")
    names = [step["name"] for step in json.loads(out)["steps"]]
    assert names == ["llm-train", "export", "encode", "audit", "train-head", "evaluate"]
    code, _, err = run_cli("iterate", path, "--init")
    assert code == 2
    assert "exists" in err


# Configurations.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[iteration]\nfolder = 3", "2: iteration.folder input should be a valid string"),
        ("[iteration]\nfolders = 'x'", "2: iteration.folders is no key"),
        ("[gpu]\nwait-seconds = -1", "2: gpu.wait-seconds input should be greater than 0"),
        ("[gpu]\nwait-seconds = nan", "2: gpu.wait-seconds"),
        ("[server]\nfree = 'stop'", "1: server.url is missing"),
        ("[server]\nurl = 'http://x'", "1: server lacks its start"),
        ("[server]\nurl = 'http://x'\nstart = []", "3: server.start list should have at least"),
        ("[server]\nurl = 'http://x'\nfree = 'sleep'", "3: server.free input should be 'stop'"),
        ("[steps.Two]\ncommand = ['x']", "1: steps.Two"),
        ("[steps.two]\ninputs = ['x']", "1: steps.two lacks its command"),
        ("[steps.two]\ncommand = ['x']", "1: steps.two lacks its outputs"),
        ("[steps.two]\ncommand = ['x', 3]\noutputs=['y']", "2: steps.two.command.1"),
        ("[steps.two]\noptions = {}", "2: steps.two.options is for encode"),
        ("[steps.encode]\ncommand = ['x']", "2: steps.encode.command is a step of ebm-encode"),
        ("[steps.encode.options]\nmodel-pat = 'x'", "2: steps.encode.options.model-pat is no"),
        ("[steps.encode]\noptions = { dtyp = 'x' }", "2: steps.encode.options.dtyp"),
        ("[steps.encode]\nserver = 'stop'", "2: steps.encode.server needs a [server]"),
        (
            "[steps.two]\ncommand = ['{nothing}']\noutputs = ['y']",
            "2: steps.two.command.0 has an unknown placeholder {nothing}",
        ),
        ("[steps.two]\ncommand = ['{']\noutputs = ['y']", "2: steps.two.command.0 has a brace"),
        (
            "[steps.two]\ncommand = ['{python.__class__}']\noutputs = ['y']",
            "2: steps.two.command.0 has an unknown placeholder",
        ),
        ("a = 1\na = 2", "is no TOML"),
        (f"a = {'[' * 3000}", "is no TOML"),
        ("[server]\nurl = 'ftp://x'\nstart = ['x']", "2: server.url is no URL"),
        ("[server]\nurl = 'http://x'\nstart = ['x']\nstop = ['{model}']", "4: server.stop.0 has"),
        ("[variables]\nfolder = 'x'", "2: variables.folder is a name that has a meaning"),
        ("[variables]\na = '{b}'\nb = 'x'", "2: variables.a holds a brace"),
        ("[steps.two]\ncommand = ['x']\noutputs = ['o/*.x']", "3: steps.two.outputs.0 is a URL or"),
        ("[steps.two]\ncommand = ['x']\noutputs = ['http://y']", "3: steps.two.outputs.0 is a URL"),
        ('[steps.two]\ncommand = ["x\\u0000"]\noutputs = ["y"]', "2: steps.two.command.0 holds"),
        ("[steps.audit.options]\ncaches = {}", "2: steps.audit.options.caches is no text"),
        (
            "[steps.two]\ncommand = ['{python:>9}']\noutputs = ['y']",
            "2: steps.two.command.0 has an unknown placeholder",
        ),
        (
            "[steps.two]\ncommand = ['x']\noutputs = ['y']\nenvironment = { 'a=b' = 'c' }",
            "4: steps.two.environment",
        ),
        ("steps = {}", "c.toml: has no steps"),
    ],
)
def test_what_is_wrong_is_told_with_key_and_line(tmp_path, run_cli, change, said):
    path = tmp_path / "c.toml"
    rest = "" if "steps" in change else "[steps.one]\ncommand = ['x']\noutputs = ['y']\n"
    path.write_text(f"{change}\n{rest}")
    code, _, err = run_cli("iterate", path, "--dry-run")
    assert code == 2
    assert f"{path}" in err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [None, b"\xff", b"x = [", "folder"])
def test_a_configuration_that_cannot_be_read(tmp_path, run_cli, content):
    path = tmp_path / "c.toml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, _, err = run_cli("iterate", path)
    assert code == 2
    assert str(path) in err


def test_steps_that_need_each_other_or_write_the_same(tmp_path, run_cli):
    path = tmp_path / "c.toml"
    step = "[steps.{}]\ncommand = ['x']\ninputs = ['{}']\noutputs = ['{}']\n"
    path.write_text(step.format("a", "1", "2") + step.format("b", "2", "1"))
    code, _, err = run_cli("iterate", path, "--dry-run")
    assert code == 2
    assert "need each other in a circle" in err
    for outputs in (("2", "2"), ("2", "2/x"), ("2/x", "2")):
        path.write_text("".join(step.format(n, "1", o) for n, o in zip("ab", outputs, strict=True)))
        code, _, err = run_cli("iterate", path, "--dry-run")
        assert code == 2
        assert "steps a and b write" in err
    path.write_text(step.format("a", "1", "1"))
    assert "is its output, and its input or in one" in run_cli("iterate", path)[2]
    path.write_text(step.format("a", "1", "."))
    assert "holds the records" in run_cli("iterate", path)[2]
    path.write_text(step.format("a", "1", "2") + step.format("b", "1", "2"))
    code, _, err = run_cli("iterate", path, "--dry-run")
    assert code == 2
    assert "steps a and b write" in err


def test_variables(tmp_path, run_cli):
    path = tmp_path / "c.toml"
    path.write_text(
        "[variables]\nwhere = 'a'\n[iteration]\nfolder = 'w/{where}'\n[steps.one]\n"
        "command = ['sh', '-c', 'echo {{{where}}} > {folder}/x']\noutputs = ['{folder}/x']\n"
    )
    summary(run_cli, path, "--set", "where=b")
    assert (tmp_path / "w" / "b" / "x").read_text() == "{b}\n"
    for given, said in [("other=1", "has no variable other"), ("where", "expected NAME=VALUE")]:
        code, _, err = run_cli("iterate", path, "--set", given)
        assert code == 2
        assert said in err


def test_a_url_may_have_placeholders(tmp_path, run_cli):
    path = tmp_path / "c.toml"
    for port, code in (("30000", 0), (" x", 2)):
        path.write_text(
            f"[variables]\nport = '{port}'\n[server]\nurl = 'http://127.0.0.1:{{port}}'\n"
            "start = ['x']\n[steps.one]\ncommand = ['x']\noutputs = ['y']\n"
        )
        found, _, err = run_cli("iterate", path, "--dry-run")
        assert found == code
        assert ("4: server.url is no URL" in err) == (code == 2)


def test_lines_of_keys():
    text = '# c\na = 1\n[b."c d"]\n"e.f" = [\n 1,\n 2]\n[[g]]\nh = {i = {j = 1}}\nk.l = 2\n'
    assert key_lines(text) == {
        ("a",): 2,
        ("b", "c d"): 3,
        ("b", "c d", "e.f"): 4,
        ("b", "c d", "e.f", "0"): 5,
        ("b", "c d", "e.f", "1"): 6,
        ("g",): 7,
        ("g", "h"): 8,
        ("g", "h", "i"): 8,
        ("g", "h", "i", "j"): 8,
        ("g", "k", "l"): 9,
    }


# Our steps.


@pytest.fixture(scope="module")
def ours(tmp_path_factory, make_model):
    """A folder with two models, recorded searches, and a configuration of all our steps."""
    folder = tmp_path_factory.mktemp("ours")
    for name, seed in (("a", 0), ("b", 1)):
        shutil.copytree(make_model("llama", seed=seed), folder / name)
    shutil.copytree(folder / "a", folder / "model")
    (folder / "t").mkdir()
    write_rows(folder / "t" / "1.parquet", searches(16))
    path = folder / "c.toml"
    path.write_text("""
[iteration]
folder = "work"
[steps.encode.options]
model-path = "model"
trajectories = ["t/*.parquet"]
output = "{folder}/states.parquet"
checkpoint-rows = 16
device = "cpu"
[steps.audit.options]
caches = ["{folder}/states.parquet"]
[steps.train-head.options]
cache = "{folder}/states.parquet"
trajectories = ["t/*.parquet"]
output = "{folder}/head.safetensors"
epochs = 3
architecture = "linear"
[steps.evaluate.options]
head = "{folder}/head.safetensors"
cache = "{folder}/states.parquet"
trajectories = ["t/*.parquet"]
no-comparisons = true
figure = "{folder}/head.svg"
""")
    return path


def test_our_steps_follow_the_model_and_the_trajectories(ours, run_cli):
    folder, cache = ours.parent, ours.parent / "work" / "states.parquet"
    first = summary(run_cli, ours)
    assert {*states_of(first).values()} == {"done"}
    figures = {step["name"]: step["figures"] for step in first["steps"]}
    assert figures["encode"]["embeddings"] == pq.ParquetFile(cache).metadata.num_rows
    assert figures["encode"]["quarantined"] == 0
    assert figures["encode"]["embeddings/s"] > 0
    assert figures["audit"]["bad rows"] == 0
    assert {"energy gap", "sibling rank-1"} <= figures["evaluate"].keys()
    assert "validation rank-1" in figures["train-head"]
    identity = open_cache(str(cache)).identity.digest
    assert {*states_of(summary(run_cli, ours)).values()} == {"kept"}
    # More trajectories: what is there is kept.
    write_rows(folder / "t" / "2.parquet", searches(20))
    second = summary(run_cli, ours)
    assert {*states_of(second).values()} == {"done"}
    encoded = {step["name"]: step["figures"] for step in second["steps"]}["encode"]
    assert encoded["encoded"] == encoded["embeddings"] - figures["encode"]["embeddings"]
    # Another model: all of it is encoded again.
    shutil.rmtree(folder / "model")
    shutil.copytree(folder / "b", folder / "model")
    third = summary(run_cli, ours)
    assert {*states_of(third).values()} == {"done"}
    encoded = {step["name"]: step["figures"] for step in third["steps"]}["encode"]
    assert encoded["encoded"] == encoded["embeddings"]
    assert open_cache(str(cache)).identity.digest != identity
    assert {*states_of(summary(run_cli, ours)).values()} == {"kept"}


def kill_in(path, step, *, log="", options=()):
    """Starts the command and kills it in a step, once that has logged something."""
    folder = path.parent / "work"
    running, logged = folder / "running.json", folder / "logs" / f"{step}.log"
    logged.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "ebm_encode", "iterate", str(path), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            if f'"step {step}"' in running.read_text() and log in logged.read_text():
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.parametrize("kills", first([1, 2]))
def test_an_encoding_that_is_killed_resumes_and_never_mixes_models(ours, run_cli, kills):
    """Killed while it replaces the cache of another model, once or twice."""
    folder, cache = ours.parent, ours.parent / "work" / "states.parquet"
    shutil.rmtree(folder / "model")
    shutil.copytree(folder / "ab"[kills - 1], folder / "model")
    for _ in range(kills):
        kill_in(ours, "encode", log="states from")
    assert {*states_of(summary(run_cli, ours)).values()} <= {"done", "kept"}
    # The same as an encoding that nothing interrupted.
    plain = folder / "plain.parquet"
    plain.unlink(missing_ok=True)
    code, _, err = run_cli(
        "encode", "--model-path", folder / "model", "--trajectories", folder / "t",
        "--output", plain, "--device", "cpu", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    made, expected = open_cache(str(cache)), open_cache(str(plain))
    assert made.identity.digest == expected.identity.digest
    texts = expected.states()
    assert sorted(made.states()) == sorted(texts)
    assert abs(made.gather(texts) - expected.gather(texts)).max() < 1e-5


@pytest.mark.thorough
def test_our_steps_that_are_killed_end_as_if_they_were_not(ours, run_cli, tmp_path):
    """Each of them once, in one iteration."""
    folder = ours.parent
    path = tmp_path / "c.toml"
    path.write_text(ours.read_text())
    shutil.copytree(folder / "a", tmp_path / "model")
    shutil.copytree(folder / "t", tmp_path / "t")
    steps = ("encode", "audit", "train-head", "evaluate")
    for step in steps:
        kill_in(path, step)
        known = (tmp_path / "work" / "records").glob("*.json")
        assert f"{step}.json" not in {file.name for file in known}
    before = summary(run_cli, path)
    assert states_of(before) == dict.fromkeys(steps[:3], "kept") | {"evaluate": "done"}
    head, report = (tmp_path / "work" / name for name in ("head.safetensors", "evaluate.json"))
    killed = head.read_bytes(), json.loads(report.read_text())["siblings"]
    shutil.rmtree(tmp_path / "work")
    assert {*states_of(summary(run_cli, path)).values()} == {"done"}
    assert (head.read_bytes(), json.loads(report.read_text())["siblings"]) == killed


# GPU memory.


def iteration(path, **options):
    config = read_config(path, variables={}, known={})
    return Iteration(config, folder_of(config, path), path.parent, **options)


def test_free_memory_is_waited_for(users):
    users.write_text(_USERS.replace("[steps.two]", "gpu-memory-gib = 2\n[steps.two]"))
    left = [[0, 2**30], [2**31 - 1, 0], [5, 2**31]]
    asked = []

    def free():
        asked.append(len(runs(users)))
        return left[min(len(asked), len(left)) - 1]

    assert iteration(users, free_memory=free).run().state == "done"
    assert asked == [0, 0, 0]


def test_memory_that_does_not_come(users):
    users.write_text(
        "[gpu]\nwait-seconds = 0.1\n"
        + _USERS.replace("[steps.two]", "gpu-memory-gib = 2\n[steps.two]")
    )
    found = iteration(users, free_memory=lambda: [2**30]).run()
    assert found.state == "failed"
    assert "no GPU has 2.0 GiB free after 0.1 s, the most is 1.0" in found.error
    assert runs(users) == []


@pytest.fixture
def borrowing(users):
    """A configuration whose server gives memory back."""
    extra = "[server]\nurl = '{}'\nfree = 'release'\nstop-seconds = 3\n[server2]"
    step = 'server = "stop"\n[steps.two]'

    def write(url):
        users.write_text(
            extra.format(url).removesuffix("[server2]") + _USERS.replace("[steps.two]", step)
        )
        return users

    return write


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
@pytest.mark.parametrize("command", ["cat in.txt", "false && cat in.txt"])
def test_a_server_gives_its_memory_back_and_takes_it_again(
    stand_in, make_model, borrowing, kind, command
):
    able = {"memory_saver": True} | ({"dev_mode": True} if kind == "vllm" else {})
    url = stand_in.play(kind, make_model("llama", head_dim=64), **able)
    path = borrowing(url)
    path.write_text(path.read_text().replace("cat in.txt", command))
    before = stand_in.status()["free_memory"]
    seen = []

    def free():
        seen.append(stand_in.status()["free_memory"])
        return [seen[-1]]

    found = iteration(path, free_memory=free).run()
    assert found.state == ("done" if command == "cat in.txt" else "failed")
    assert max(seen) > before
    assert stand_in.status()["free_memory"] == before
    assert not stand_in.status()["dead"]
    assert not (path.parent / "server" / "intent.json").exists()


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_memory_that_a_killed_run_left_with_nobody_is_taken_again(
    stand_in, make_model, borrowing, kind
):
    able = {"memory_saver": True} | ({"dev_mode": True} if kind == "vllm" else {})
    url = stand_in.play(kind, make_model("llama", head_dim=64), **able)
    path = borrowing(url)
    before = stand_in.status()["free_memory"]
    killed = iteration(path, free_memory=lambda: [stand_in.status()["free_memory"]])
    (path.parent / "server").mkdir()
    killed.server.free()  # and the process is gone
    assert stand_in.status()["free_memory"] > before
    again = iteration(path, free_memory=lambda: [stand_in.status()["free_memory"]])
    assert "was running" in again.recover()
    assert stand_in.status()["free_memory"] == before
    assert not stand_in.status()["dead"]
    # A run that was killed before the server gave anything back: resuming would end SGLang.
    (path.parent / "server" / "intent.json").write_text(
        json.dumps({"free": "release", "names": [], "free_before": before})
    )
    assert "was running" in again.recover()
    assert not stand_in.status()["dead"]


def test_a_server_that_would_lose_its_weights_is_not_asked(stand_in, make_model, borrowing):
    path = borrowing(stand_in.play("sglang", make_model("llama", head_dim=64)))
    found = iteration(path, free_memory=lambda: [1]).run()
    assert found.state == "failed"
    assert "--enable-memory-saver" in found.error
    assert runs(path) == []
    assert not stand_in.status()["dead"]


@pytest.mark.parametrize("start", ["", "start = ['false']\n"])
def test_a_server_that_was_started_again_without_its_option_is_back(
    stand_in, make_model, borrowing, start
):
    """It has given nothing back, though a run that was killed had one give it."""
    path = borrowing(stand_in.play("sglang", make_model("llama", head_dim=64)))
    path.write_text(path.read_text().replace("free = 'release'", f"{start}free = 'release'"))
    (path.parent / "server").mkdir()
    note = path.parent / "server" / "intent.json"
    note.write_text(json.dumps({"free": "release", "names": [], "free_before": 1}))
    again = iteration(path, free_memory=lambda: [1])
    assert "was running" in again.recover()
    assert not note.exists()


def test_a_server_that_does_not_run_has_nothing_to_give_back(borrowing):
    path = borrowing("http://127.0.0.1:9")
    found = iteration(path, free_memory=lambda: [1]).run()
    assert found.state == "done", found.error


# Other servers and commands.


def test_the_users_command_tells_which_model_answers(tmp_path, run_cli):
    """A server that is only files: its commands say what it has."""
    path = tmp_path / "c.toml"
    path.write_text("""
[server]
url = "http://127.0.0.1:9"
start = ["sh", "-c", "echo {model} > up"]
stop = ["sh", "-c", "rm -f up"]
health = ["cat", "up"]
model = "new"
settle-seconds = 0
[steps.one]
command = ["sh", "-c", "test ! -e up && mkdir new"]
outputs = ["new"]
server = "stop"
""")
    (tmp_path / "up").write_text("old\n")
    found = summary(run_cli, path)
    assert found["server"] == "started, answers with new"
    assert (tmp_path / "up").read_text() == "new\n"
    assert summary(run_cli, path)["server"] == "was running, answers with new"
    (tmp_path / "up").write_text("\n")  # it prints no model: that is no right one
    path.write_text(path.read_text().replace("settle", "start-seconds = 0.5\nsettle"))
    code, out, err = run_cli("iterate", path, "--recover")
    assert code in (0, 2), err
    assert "new" in out + err


def test_help_and_plan_import_neither_torch_nor_pyarrow(users):
    script = (
        "import sys; from ebm_encode.cli import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'pyarrow', 'transformers'} & {*sys.modules}; sys.exit(code)"
    )
    for options in (["--help"], [str(users), "--dry-run"]):
        done = subprocess.run([sys.executable, "-c", script, "iterate", *options], check=False)
        assert done.returncode == 0


def test_errors_are_of_one_tree():
    assert issubclass(PipelineError, Exception)
    assert PipelineError.exit_code == 1
    assert {ArgumentError.exit_code, InputError.exit_code} == {2}
    assert UnsafeServerError.exit_code == 1
    assert callable(iteration_of)
