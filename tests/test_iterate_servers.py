"""The inference server beside an iteration, in rarer weather than that of every step."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebm_encode.pipeline.asking import Answer, listens_since
from ebm_encode.pipeline.config import ServerTable
from ebm_encode.pipeline.right_model import RightModel
from iterations.play import HERE, STEPS, Play, kill
from matrix import first

# Starts the server in a session of its own and without the mark, as systemd and docker do.
_LAUNCH = """
import os, subprocess, sys
kept = {name: value for name, value in os.environ.items() if "MARK" not in name}
command = [sys.executable, "server.py", *sys.argv[1:]]
server = subprocess.Popen(command, env=kept, start_new_session=True)
with open("pids", "a") as file:
    file.write(f"{server.pid}\\n")
"""
_KILL = 'stop = ["sh", "-c", "echo stop >> stops; kill $(cat pids) && rm -f pids"]'


@pytest.fixture
def play(tmp_path):
    """A folder in which one iteration was done, and another is to come."""
    found = Play(tmp_path)
    code, printed = found.run()
    assert code == 0, printed
    found.next()
    yield found
    found.close()


@contextlib.contextmanager
def by_hand(play, model, *faults, waits=True):
    """A server that the user has started; `pids` is the file by which `stop` ends it."""
    command = [sys.executable, "server.py", str(play.port), model, *faults]
    process = subprocess.Popen(command, cwd=play.folder)
    try:
        (play.folder / "pids").write_text(f"{process.pid}\n")
        end = time.monotonic() + 30
        while waits and not listens(play.port):
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def listens(port):
    """Whether something listens; it is not asked, for that would count."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def with_daemon(play):
    """`start` returns at once, and only `stop` ends the server."""
    (play.folder / "launch.py").write_text(_LAUNCH)
    play.edit('"server.py", "', '"launch.py", "')
    play.edit("stop-seconds = 2", f"stop-seconds = 5\n{_KILL}")


# Ending it.


@pytest.mark.parametrize("how", first(["command", "processes"]))
def test_a_server_that_was_told_to_end_is_not_taken_for_running(play, how):
    """The run is killed while the server still answers, after `stop` if there is one."""
    play.reboot()
    play.fault("server", "lingers 6")
    assert play.run("--recover")[0] == 0
    server = play.processes("server.py")[0].pid
    more = f'\nstop = ["kill", "{server}"]' if how == "command" else ""
    play.edit("stop-seconds = 2", f"stop-seconds = 20{more}")
    process = play.start()
    play.wait_for(play.folder / "told")
    time.sleep(0.5)
    kill(process)
    assert play.served() is not None
    code, printed = play.run("--recover")
    assert code == 0, printed
    assert play.processes("server.py")[0].pid != server
    play.require_server()


def test_a_server_that_still_loads_is_stopped_too(play):
    play.reboot()
    play.edit("stop-seconds = 2", f"stop-seconds = 5\n{_KILL}")
    play.fault("server", "slow 3600")
    play.fault("llm-train", "fail-start")
    with by_hand(play, "work/1/model", "faults/server", waits=False) as loading:
        assert play.run()[0] == 1
        assert loading.poll() is not None
    assert (play.folder / "stops").read_text() == "stop\n"
    play.require_server()


def test_a_stop_that_fails_where_nothing_runs_is_no_fault(play):
    play.reboot()
    play.edit("stop-seconds = 2", f"stop-seconds = 5\n{_KILL}")
    code, printed = play.run()
    assert code == 0, printed
    assert "stop exits with" not in printed
    play.require_end()


def test_a_second_start_is_not_made_beside_the_first(play):
    play.reboot()
    with_daemon(play)
    play.fault("server", "wrong")
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()


def test_a_step_of_another_iteration_does_not_go_on_beside_the_server(play):
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    assert len(play.processes()) == 1
    play.number = 3
    code, printed = play.run("--recover")
    assert code == 0, printed
    assert play.processes() == []
    assert play.served() is not None
    play.number = 2
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()


def test_another_address_with_the_same_folder_ends_no_server(play):
    first, old = play.processes("server.py")[0], play.port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        new = probe.getsockname()[1]
    play.config.write_text(play.config.read_text().replace(str(old), str(new)))
    for options in ((), ("--recover",)):
        code, printed = play.run(*options)
        assert code == 2
        assert f"http://127.0.0.1:{old}" in printed
        assert f"http://127.0.0.1:{new}" in printed
    assert first.is_running()
    assert play.runs() == []


# Which model is right.


@pytest.mark.parametrize("what", first(["run", "recover"]))
def test_what_a_server_started_by_hand_says_counts_more_than_an_old_start(play, what):
    """It has a model of the hub, and the last one that was started here is another."""
    play.reboot()
    play.edit("stop-seconds = 2", f"stop-seconds = 5\n{_KILL}")
    play.fault("llm-train", "fail-start")
    with by_hand(play, "org/other") as server:
        code, printed = play.run(*(["--recover"] if what == "recover" else []))
        assert code == (0 if what == "recover" else 1), printed
        assert (server.poll() is None) == (what == "recover")
        assert play.served()[0] == "org/other"
        assert not play.intent.exists()


@pytest.mark.parametrize("how", first(["link", "rename", "parent"]))
def test_a_model_that_was_moved_in_with_older_files_is_another_one(tmp_path, how):
    play = Play(tmp_path)
    try:
        play.edit('model = "{folder}/model"', 'model = "models/current"')
        models = play.folder / "models"
        for name in ("models/a", "models/b", "others/current"):
            (play.folder / name).mkdir(parents=True)
            (play.folder / name / "weights").write_text(f"weights {name[-1]}")
            os.utime(play.folder / name / "weights", (1e9, 1e9))
        (models / "current").symlink_to("a")
        with_daemon(play)
        code, printed = play.run("--recover")
        assert code == 0, printed
        assert play.served() == ("models/current", "weights a")
        time.sleep(1.2)
        if how == "parent":
            models.rename(play.folder / "former")
            (play.folder / "others").rename(models)
        else:
            (models / "current").unlink()
        if how == "link":
            (models / "current").symlink_to("b")
        if how == "rename":
            (models / "b").rename(models / "current")
        code, printed = play.run("--recover")
        assert code == 0, printed
        content = "weights t" if how == "parent" else "weights b"
        assert play.served() == ("models/current", content)
    finally:
        with contextlib.suppress(OSError):
            os.kill(int((play.folder / "pids").read_text()), signal.SIGKILL)
        play.close()


@pytest.mark.parametrize("how", ["link", "link above", "rename", "write"])
def test_a_server_begun_after_its_model_was_moved_in_has_that_one(tmp_path, how):
    """Its start is not known here: only an older one of the same path is."""
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
        os.utime(tmp_path / name / "weights", (1e9, 1e9))
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "now").symlink_to("a")
    (tmp_path / "current").symlink_to("a/model")
    model = {"link": "current", "link above": "now/model"}.get(how, "a/model")
    note = {"name": "x", "mark": "0" * 32, "pid": 0, "created": 1.0}
    (tmp_path / "started.json").write_text(json.dumps(note | {"model": model, "digest": "former"}))
    time.sleep(2.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    table = ServerTable.model_validate({"url": f"http://127.0.0.1:{port}", "start": ["true"]})
    right = RightModel(
        table, tmp_path, tmp_path, model_is_made=lambda _: True, made_at=lambda _: None
    )
    command = [sys.executable, HERE / "server.py", str(port), model]
    with subprocess.Popen(command, cwd=tmp_path) as server:
        try:
            while not listens(port):
                time.sleep(0.05)
            assert right.is_right(Answer("up", (model,)), model)
            if how == "write":
                (tmp_path / "a" / "model" / "weights").write_text("new")
            elif how == "rename":
                (tmp_path / "a" / "model").rename(tmp_path / "former")
                (tmp_path / "b" / "model").rename(tmp_path / "a" / "model")
            else:
                link = tmp_path / ("current" if how == "link" else "now")
                link.unlink()
                link.symlink_to("b/model" if how == "link" else "b")
            assert not right.is_right(Answer("up", (model,)), model)
        finally:
            server.kill()


def test_a_server_that_turns_to_another_model_is_not_taken_for_the_right_one(play):
    """It has the right one, and `settle-seconds` later no more."""
    play.reboot()
    play.edit("stop-seconds = 2", f"stop-seconds = 5\n{_KILL}")
    play.edit("settle-seconds = 0.4", "settle-seconds = 1.5")
    play.fault("server", "turns 0.7")
    play.intent.write_text('{"free": "stop", "names": ["work/1/model"]}')
    with by_hand(play, "work/1/model", "faults/server"):
        code, printed = play.run("--recover")
        assert code == 0, printed
        assert play.served()[0] == "work/1/model"
    play.require_server()


def test_a_listener_here_says_nothing_of_a_server_elsewhere():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert listens_since(f"http://127.0.0.1:{port}") is not None
        assert listens_since(f"http://localhost:{port}") is not None
        assert listens_since(f"http://192.0.2.1:{port}") is None


# Signals.


def test_a_signal_while_the_server_is_brought_back_ends_the_run(play):
    play.fault("server", "slow 5")
    process = play.start()
    play.wait_for(play.work / "records" / "export.json")
    end = time.monotonic() + 60
    while not play.processes("server.py"):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "the server is being brought back first" in printed
    assert play.runs() == [*STEPS[:2]]
    play.require_server()


def left_step(play):
    """A run that was killed, and its step, which takes no notice of SIGTERM."""
    step = play.folder / "step.py"
    ignores = "import signal\nsignal.signal(15, signal.SIG_IGN)\n"
    step.write_text(ignores + step.read_text())
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    play.broken = (
        "from ebm_encode.pipeline import processes, signals\n"
        "processes.Started.end.__defaults__ = (3.0,)\n"
        "ends = processes.Started.end\n"
        "def told(*given, **named):\n"
        "    open('ending', 'w').close()\n"
        "    return ends(*given, **named)\n"
        "processes.Started.end = told"
    )


def test_a_signal_while_a_left_step_is_ended_brings_the_server_back(play, monkeypatch):
    monkeypatch.chdir(play.folder)
    left_step(play)
    process = play.start()
    play.wait_for(Path("ending"))
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "interrupted" in printed
    assert play.runs() == ["llm-train"]
    play.require_server()


@pytest.mark.parametrize(("fault", "code"), [("fail-start", 1), ("", 130)])
def test_a_server_that_is_left_to_the_next_run_is_told(play, fault, code):
    """By a second signal while it is brought back: at the end, or before a step."""
    play.fault("llm-train", fault)
    play.fault("server", "slow 60")
    former = play.processes("server.py")
    process = play.start()
    end = time.monotonic() + 60
    while play.processes("server.py") in ([], former):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == code
    assert play.served() is None
    assert "the server is not back" in " ".join(printed.split())
    assert "--recover" in printed
    assert (play.work / "summary.json").exists()
    play.fault("server")
    assert play.run("--recover")[0] == 0
    play.require_server()


# What was written is on disk before it is vouched for.


def test_outputs_are_on_disk_before_their_record(play):
    play.broken = (
        "import os\n"
        "sync = os.fsync\n"
        "def told(number):\n"
        "    path = os.readlink(f'/proc/self/fd/{number}')\n"
        f"    open({str(play.folder / 'synced')!r}, 'a').write(path + chr(10))\n"
        "    sync(number)\n"
        "os.fsync = told"
    )
    code, printed = play.run()
    assert code == 0, printed
    synced = (play.folder / "synced").read_text().splitlines()
    for step, output in zip(STEPS, ("adapter", "model", "search"), strict=True):
        record = next(n for n, path in enumerate(synced) if f".{step}.json." in path)
        for path in (play.work / output / "weights", play.work / output, play.work):
            assert str(path) in synced[:record]
