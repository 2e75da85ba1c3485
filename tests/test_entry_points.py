"""The origin's entry points: scripts that run an iteration, in a project with its folders."""

import contextlib
import json
import os
import subprocess
import sys
import tomllib

import psutil
import pyarrow.parquet as pq
import pytest

from ebm_encode import EnergyHead, open_cache
from iterations.project import Project
from recorded_searches import searches, write_rows
from support import PROVER, ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
ENTRIES = [script for script in SCRIPTS if not script.name.startswith("_")]
CONFIGS = sorted((ROOT / "scripts").glob("*.toml"))


def end_server(project):
    path = project.folder / "data" / "server" / "started.json"
    if path.exists():
        for process in psutil.process_iter(["cmdline"]):
            if str(project.folder / "server.py") in (process.info["cmdline"] or []):
                process.kill()
                process.wait(10)


@pytest.fixture
def project(tmp_path):
    found = Project(tmp_path)
    yield found
    end_server(found)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "pkill" not in text
    assert "killall" not in text


@pytest.mark.parametrize("script", ENTRIES, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_failure(script):
    assert "\nset -euo pipefail\n" in script.read_text()
    assert script.stat().st_mode & 0o111


def test_configurations_agree():
    """One server, whichever script starts it; one encoder in training and search."""
    read = {path.name: tomllib.loads(path.read_text()) for path in CONFIGS}
    servers = [{**config["server"], "model": ""} for config in read.values()]
    assert all(server == servers[0] for server in servers)
    training, search = read["burnqed.toml"], read["burnqed-search.toml"]
    for name in ("template", "dtype", "state-format", "root", "heads", "models", "trajectories"):
        assert training["variables"][name] == search["variables"][name]
    options = training["steps"]["encode"]["options"]
    command = search["steps"]["search"]["command"]
    for name in ("template", "dtype", "state-format", "max-length", "overlong"):
        assert command[command.index(f"--{name}") + 1] == options[name]


def test_the_server_has_the_model_that_is_asked_for(project):
    first, second = project.make_model("first"), project.make_model("second")
    settings = {"TP": "2", "MEM_FRACTION": "0.5", "QUANTIZATION": "fp8", "MAX_RUNNING": "7",
                "DTYPE": "float16", "CUDA_DEVICE": "3", "EXTRA_ARGS": "--a 'b c"}  # fmt: skip
    code, printed = project.run("start_inference_server.sh", str(first), **settings)
    assert code == 0, printed
    assert project.served() == first
    called = (project.folder / "sglang").read_text().splitlines()
    assert called[:2] == ["-m", "sglang.launch_server"]
    given = " ".join(called)
    for words in (f"--port {project.port}", "--tp 2", "--mem-fraction-static 0.5",
                  "--dtype float16", "--enable-return-hidden-states", "--max-running-requests 7",
                  "--quantization fp8"):  # fmt: skip
        assert words in given
    assert called[-4:] == ["--a", "'b", "c", "3"]
    before = project.server()
    code, printed = project.run("start_inference_server.sh", "data/models/merged/first")
    assert code == 0, printed
    assert "was running" in printed
    assert project.server() == before
    code, printed = project.run("start_inference_server.sh", "data/models/merged/second")
    assert code == 0, printed
    assert project.served() == second
    with contextlib.suppress(psutil.NoSuchProcess):  # or nobody has taken its exit code yet
        assert psutil.Process(before["pid"]).status() == psutil.STATUS_ZOMBIE


def test_another_server_by_its_command(project):
    model = project.make_model("spaced name")
    code, printed = project.run(
        "start_inference_server.sh",
        str(model),
        PORT="",
        SGLANG_URL=f"http://127.0.0.1:{project.port}/",
        INFERENCE_COMMAND=f'exec python3 "{project.folder}/server.py" "$PORT" "$MODEL_PATH"',
    )
    assert code == 0, printed
    assert project.served() == model
    assert not (project.folder / "sglang").exists()


def test_a_server_that_does_not_start(project):
    model = project.make_model("first")
    code, printed = project.run(
        "start_inference_server.sh", str(model), INFERENCE_COMMAND="echo no memory; exit 3"
    )
    assert code == 2
    assert "its command exits with 3" in printed
    assert "hint: see" in printed
    assert "no memory" in (project.folder / "data" / "server" / "server.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "expected one model"),
        (("a", "b"), "expected one model"),
        (("no/such/folder",), "no such folder"),
        (("--help",), "expected one model"),
    ],
)
def test_no_model_no_server(project, arguments, told):
    code, printed = project.run("start_inference_server.sh", *arguments)
    assert code == 2
    assert told in printed
    assert project.served() is None


def test_iteration_zero(project):
    code, printed = project.run("run_iteration_train.sh", "0", LORA_R="32", LLM_BASE="base/model")
    assert code == 0, printed
    assert "step 0: not repeated" in printed
    assert project.runs() == [
        "llm-train 0 base/model 32",
        "export",
        "cargo iter_0_post_train.json",
        "ebm-prover iter_0_no_ebm.parquet",
    ]
    model = project.folder / "data" / "models" / "merged" / "iter_0"
    assert (model / "weights").read_text() == "base/model adapter 32\n"
    assert project.served() == model
    evaluated = project.written("evals/iter_0_post_train.json")
    assert evaluated["model"] == str(model)
    assert evaluated["arguments"][:6] == ["run", "--release", "-p", "prover-core", "--", "eval"]

    # The same command does nothing; START_STEP is no blind skip.
    same = {"LORA_R": "32", "LLM_BASE": "base/model"}
    for start in ("", "3", "5"):
        code, printed = project.run("run_iteration_train.sh", "0", START_STEP=start, **same)
        assert code == 0, printed
    assert project.runs() == []
    code, printed = project.run(
        "run_iteration_train.sh", "0", START_STEP="3", LLM_BASE="base/model", LORA_R="8"
    )
    assert code == 2
    assert "step llm-train comes before, and is not done: its command changed" in printed
    assert project.runs() == []

    # Its searches, on the server with its model, with and without noise.
    end_server(project)
    code, printed = project.run("run_iteration_search.sh", "0", MAX_THEOREMS="5")
    assert code == 0, printed
    assert project.runs() == ["ebm-prover iter_0.parquet", "ebm-prover iter_0_noisy.parquet"]
    quiet, noisy = (
        project.written(f"trajectories/{name}.parquet") for name in ("iter_0", "iter_0_noisy")
    )
    assert quiet["model"] == noisy["model"] == str(model)
    assert "--temperature" not in quiet["arguments"]
    assert noisy["arguments"][noisy["arguments"].index("--temperature") + 1] == "1.2"
    assert quiet["arguments"][quiet["arguments"].index("--first") + 1] == "5"
    code, printed = project.run("run_iteration_search.sh", "0", MAX_THEOREMS="5")
    assert code == 0, printed
    assert project.runs() == []
    # The prover knows each option that it is given, and resumes.
    for written in (quiet, project.written("evals/iter_0_no_ebm.parquet")):
        require_options_of_the_prover(project, written["arguments"])


def test_iteration_one(tmp_path, llama):
    """Embeddings and head are real; the server is stopped for them, and gets the new model."""
    project = Project(tmp_path, llama)
    former = project.make_model("iter_0")
    (tmp_path / "data" / "trajectories").mkdir()
    rows = [
        row | {"state_pp": row["state_pp"] and f"h : {row['state_pp']}"} for row in searches(12)
    ]
    write_rows(tmp_path / "data" / "trajectories" / "iter_0.parquet", rows)
    try:
        code, printed = project.run("start_inference_server.sh", str(former))
        assert code == 0, printed
        code, printed = project.run("run_iteration_train.sh", "1", "--json", START_STEP="1")
        assert code == 0, printed
        model = tmp_path / "data" / "models" / "merged" / "iter_1"
        assert project.served() == model
        assert [run.split()[0] for run in project.runs()] == [
            "llm-train", "export", "cargo", "ebm-prover", "ebm-prover",
        ]  # fmt: skip
        folder = tmp_path / "data" / "checkpoints" / "ebm" / "iter_1"
        cache = open_cache(str(folder / "embeddings.parquet"))
        states = {row["state_pp"] for row in rows} - {""}
        assert set(pq.read_table(folder / "embeddings.parquet")["state_pp"].to_pylist()) == states
        head = EnergyHead.open(str(folder / "head.safetensors"))
        assert len(head.scores(cache.gather([*states][:3]))) == 3
        summary = json.loads((tmp_path / "data/iterations/1/summary.json").read_text())
        assert {step["name"]: step["state"] for step in summary["steps"]}["evaluate"] == "done"

        # The server died since; the search has it back first, and ranks by the head.
        end_server(project)
        code, printed = project.run("run_iteration_search.sh", "1", NUM_WORKERS="3")
        assert code == 0, printed
        found = project.written("trajectories/iter_1.parquet")
        assert found["model"] == str(model)
        arguments = found["arguments"]
        for name, value in (("--head", folder / "head.safetensors"), ("--model-path", model)):
            given = tmp_path / "scripts" / arguments[arguments.index(name) + 1]
            assert given.resolve() == value.resolve()
        assert arguments[arguments.index("--workers") + 1] == "3"
        require_options_of_the_prover(project, arguments)

        # The next iteration has both searches as its input; this one is as it was.
        code, printed = project.run("run_iteration_train.sh", "2", "--dry-run")
        assert code == 0, printed
        links = tmp_path / "data" / "iterations" / "2" / "trajectories"
        assert {path.name for path in links.iterdir()} == {"iter_0.parquet", "iter_1.parquet"}
        project.runs()
        code, printed = project.run("run_iteration_train.sh", "1")
        assert code == 0, printed
        assert project.runs() == []
    finally:
        end_server(project)


def require_options_of_the_prover(project, arguments):
    """The prover takes the arguments, and fails where Pantograph should start."""
    assert "--resume" in arguments
    given = [*arguments]
    given[given.index("--pantograph") + 1] = "false"
    (project.folder / "vendor" / "Pantograph").mkdir(parents=True, exist_ok=True)
    output = given.index("--output") + 1
    given[output] = str(project.folder / "other.parquet")
    done = subprocess.run(
        [str(PROVER), *given],
        cwd=project.folder / "scripts",
        env=os.environ | {"VIRTUAL_ENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "pantograph: false did not start" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "told"),
    [
        ("train", (), {}, "expected the number of an iteration"),
        ("train", ("01",), {}, "expected the number of an iteration"),
        ("train", ("1",), {"START_STEP": "6"}, "expected 0 to 5"),
        ("train", ("1",), {"KILL_SERVER": "1"}, "KILL_SERVER=1: the server is stopped"),
        ("train", ("1",), {"EBM_LR": "1e-4"}, "hint: `ebm-encode train-head --help`"),
        ("train", ("1",), {"ENCODE_URL": "http://h:1"}, "give `backend` and `server`"),
        ("train", ("1",), {"TRAJ_DIR": "/data"}, "expected a folder below"),
        ("train", ("1", "--until", "none"), {}, "no such step"),
        ("search", ("x",), {}, "expected the number of an iteration"),
        ("search", ("1",), {"START_STEP": "3"}, "there is only step 2"),
        ("search", ("1",), {"SEARCH_CONFIG": "a"}, "burnqed-search.toml"),
        ("search", ("1",), {}, "hint: scripts/run_iteration_train.sh 1"),
    ],
)
def test_what_is_refused(project, script, arguments, environment, told):
    code, printed = project.run(f"run_iteration_{script}.sh", *arguments, **environment)
    assert code == 2
    assert told in printed
    assert project.runs() == []


def test_links_name_the_searches_of_earlier_iterations(project):
    folder = project.folder / "data" / "trajectories"
    folder.mkdir()
    names = ["iter_0", "iter_0_noisy", "iter_0_test", "iter_1_debug", "iter_1", "iter_2", "iter_10"]
    for name in names:
        (folder / f"{name}.parquet").write_text(name)
    code, printed = project.run("run_iteration_train.sh", "2", "--dry-run")
    assert code == 0, printed
    found = sorted((project.folder / "data/iterations/2/trajectories").iterdir())
    assert [path.name for path in found] == [
        "iter_0.parquet",
        "iter_0_noisy.parquet",
        "iter_1.parquet",
    ]
    assert [path.read_text() for path in found] == ["iter_0", "iter_0_noisy", "iter_1"]
    assert project.runs() == []
    # A run that reads them finds them at any time: those that are right stay.
    before = [path.lstat() for path in found]
    (folder / "iter_1.parquet").unlink()
    assert project.run("run_iteration_train.sh", "2", "--dry-run")[0] == 0
    assert [path.lstat() for path in found[:2]] == before[:2]
    assert not found[2].is_symlink()
