"""Iterations in bad weather: the server is back at the end or after the next command, always with
the right model, and nothing that was done is done again."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from ebm_encode.pipeline.processes import Started
from iterations.play import STEPS, Play, kill
from matrix import first, pairs, thorough

PLACES = ("start", "middle", "end")
NOTES = ("intent.json", "started.json", "stopping.json")


@pytest.fixture
def play(tmp_path):
    """A folder in which one iteration was done, and another is to come."""
    found = Play(tmp_path)
    code, printed = found.run()
    assert code == 0, printed
    found.require_end()
    found.next()
    yield found
    found.close()


def finish(play, before):
    """The next command ends the iteration, and repeats only what was not done."""
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()
    assert play.runs() == [*before, *STEPS[STEPS.index(before[-1]) :]]


@pytest.mark.parametrize(("step", "place"), pairs(STEPS, PLACES))
def test_a_step_that_fails(play, step, place):
    play.fault(step, f"fail-{place}")
    code, printed = play.run()
    assert code == 1
    assert f"step {step}: exits with 3" in printed
    assert "CUDA error: an illegal memory access" in printed
    assert "the same command resumes" in printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize(("step", "place"), pairs(STEPS, PLACES))
def test_a_step_that_hangs_and_a_run_that_is_killed(play, step, place):
    play.fault(step, f"hang-{place}")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    # The step goes on; the next command ends it first.
    assert len(play.processes()) == 1
    assert play.intent.exists() or step == "search"
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize(
    ("step", "number"), pairs(STEPS, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
)
def test_a_run_that_is_asked_to_end(play, step, number):
    play.fault(step, "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "interrupted" in printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize("step", first(STEPS))
def test_a_step_that_is_killed(play, step):
    play.fault(step, "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    play.processes()[0].kill()
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"step {step}: was ended by signal SIGKILL" in printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize(("step", "place"), pairs(STEPS, PLACES))
def test_a_machine_that_starts_again(play, step, place):
    play.fault(step, f"hang-{place}")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    play.reboot()
    assert play.served() is None
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


def test_a_machine_that_starts_again_before_the_server_is_touched(play):
    play.reboot()
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()
    play.reboot()
    play.fault("llm-train", "fail-start")
    assert play.run()[0] == 1
    play.require_server()
    finish(play, ["llm-train"])


@pytest.mark.parametrize("step", first(STEPS))
def test_a_step_on_a_full_disk(play, step):
    play.fault(step, "full")
    code, printed = play.run()
    assert code == 1
    assert "No space left on device" in printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


def test_a_step_that_takes_too_long(tmp_path):
    play = Play(tmp_path, timeout=1)
    try:
        play.fault("export", "hang-middle")
        code, printed = play.run()
        assert code == 1
        assert "step export: does not end within 1 s" in printed
        assert play.processes() == []
        finish(play, ["llm-train", "export"])
    finally:
        play.close()


# The server.


@pytest.mark.parametrize(
    "fault", ["crash", "wrong", *thorough("dies 0", "dies 0.2", "slow 4", "stubborn")]
)
def test_a_server_with_one_bad_start(play, fault):
    play.fault("server", fault)
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()
    assert play.runs() == [*STEPS]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("crash", "its command exits with 1"),
        ("wrong", "answers with models/another, expected work/2/model"),
        ("dies 0.2", "answered, and 0.4 s later no more"),
    ],
)
def test_a_server_that_does_not_come_back_comes_back_by_the_next_command(play, fault, says):
    play.fault("server", *[fault] * 4)
    code, printed = play.run()
    assert code == 1
    assert says in printed
    assert "--recover` tries again" in printed
    assert play.intent.exists()
    done = play.runs()
    play.fault("server")
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()
    assert play.runs() == [*done, *STEPS[len(done) :]]


def test_a_server_that_takes_longer_than_it_may(tmp_path):
    play = Play(tmp_path, start_seconds=2)
    try:
        play.fault("server", "slow 30", "slow 30", "slow 30", "slow 30")
        code, printed = play.run()
        assert code == 1
        assert "does not answer within 2 s" in printed
        play.fault("server")
        assert play.run()[0] == 0
        play.require_end()
    finally:
        play.close()


def test_a_server_that_does_not_stop_is_killed(play):
    play.reboot()
    play.fault("server", "stubborn")
    assert play.run("--recover")[0] == 0
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()


def test_a_server_that_nobody_here_started_is_left_as_it_is(play):
    stranger = play.processes("server.py")[0]
    (play.folder / "server" / "started.json").unlink()
    code, printed = play.run()
    assert code == 1
    assert "runs, and was not started here" in printed
    assert "hint: give [server] `stop`" in printed
    assert play.runs() == []
    assert stranger.is_running()
    play.require_server()


def test_a_server_that_dies_later_is_started_by_the_next_command(play):
    assert play.run()[0] == 0
    done = play.runs()
    play.reboot()
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()
    assert play.runs() == done
    assert "server: started, answers with work/2/model" in printed


def test_a_server_whose_model_was_replaced_behind_its_back_is_started_again(play):
    code, printed = play.run("--until", "export")
    assert code == 0, printed
    play.require_server()
    play.change_data(3)
    # By hand, so that no intent is written.
    (play.work / "model" / "weights").write_text("by hand")
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()


@pytest.mark.parametrize("place", first(PLACES))
def test_a_model_that_is_replaced_where_it_is(tmp_path, place):
    play = Play(tmp_path)
    try:
        assert play.run()[0] == 0
        play.change_data(2)
        play.fault("export", f"fail-{place}")
        code, printed = play.run()
        assert code == 1
        if place == "end":  # neither the former model nor one that is known to be whole is there
            assert "not as the step that makes it left it" in printed
            assert play.served() is None
            assert play.run("--recover")[0] == 2
        else:
            play.require_server()
        assert play.run()[0] == 0
        play.require_end()
    finally:
        play.close()


def test_two_iterations_beside_one_server(play):
    play.fault("llm-train", "hang-middle")
    first = play.start()
    play.wait_for(play.folder / "hanging")
    play.number = 3
    code, printed = play.run()
    assert code == 2
    assert "another `ebm-encode iterate` is at work there" in printed
    play.number = 2
    kill(first)
    finish(play, ["llm-train"])


def test_two_iterations_in_one_folder(play):
    play.fault("llm-train", "hang-middle")
    first = play.start()
    play.wait_for(play.folder / "hanging")
    code, printed = play.run()
    assert code == 2
    assert "another `ebm-encode iterate` is at work there" in printed
    assert play.run("--recover")[0] == 2
    assert len(play.processes()) == 1
    kill(first)
    finish(play, ["llm-train"])


def test_a_kill_while_the_server_is_started(play):
    play.fault("server", "slow 3")
    process = play.start()
    play.wait_for(play.work / "records" / "export.json")
    end = time.monotonic() + 60
    while not play.processes("server.py"):
        assert time.monotonic() < end
        time.sleep(0.01)
    kill(process)
    code, printed = play.run()
    assert code == 0, printed
    play.require_end()
    assert play.runs() == [*STEPS]


# Which model is right.


@pytest.mark.parametrize("how", first(["inside", "link"]))
def test_a_model_inside_an_output_or_behind_a_link_is_not_served_half(play, how):
    """Killed while it is being written where the server is to read it."""
    play.reboot()
    if how == "link":
        play.edit('model = "{folder}/model"', 'model = "work/current"')
        (play.folder / "work" / "current").symlink_to(play.work / "model")
    else:
        play.edit('model = "{folder}/model"', 'model = "{folder}/model/."')
        play.edit('outputs = ["{folder}/model"]', 'outputs = ["{folder}/model", "{folder}/more"]')
    play.fault("export", "hang-end")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()


def test_a_name_that_all_models_have_does_not_make_one_right(play):
    """`served-name` is the same for the former model and the new one."""
    play.edit(
        'model = "{folder}/model"', 'model = "{folder}/model"\nserved-name = "models/another"'
    )
    play.edit('server = "stop"', 'server = "keep"')
    play.edit("[steps.llm-train]", '[steps.llm-train]\nserver = "keep"')
    play.reboot()
    play.fault("server", *["wrong"] * 9)  # it calls each model so
    assert play.run("--recover")[0] in (0, 1, 2)
    code, printed = play.run()
    assert code == 0, printed
    assert play.served() == ("models/another", play.expected()["model"])


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_server_that_was_started_by_hand(play, place):
    """With the path of the model, before or after a step has written it."""
    play.reboot()
    play.edit("[steps.llm-train]", '[steps.llm-train]\nserver = "keep"')
    play.edit('server = "stop"', 'server = "keep"')
    (play.folder / "server" / "started.json").unlink()
    code, printed = play.run("--until", "llm-train")
    assert code == 0, printed
    model = play.work / "model"
    if place == "before":
        model.mkdir()
        (model / "weights").write_text("old")
    else:
        assert play.run("--until", "export")[0] == 0
        play.reboot()
        (play.folder / "server" / "started.json").unlink()
        time.sleep(1.1)
    command = [sys.executable, "server.py", str(play.port), str(model)]
    with subprocess.Popen(command, cwd=play.folder) as by_hand:
        try:
            while play.served() is None:
                time.sleep(0.1)
            code, printed = play.run()
            alive = by_hand.poll() is None
        finally:
            by_hand.kill()
    assert alive, "it is not ours"
    if place == "before":
        assert code == 1
        assert "runs, and was not started here" in printed
    else:
        assert code == 0, printed


@pytest.mark.parametrize("model", first(["{folder}/mode", "work/mode", "mode"]))
def test_a_model_that_no_step_makes_is_a_failure(play, model):
    play.edit('model = "{folder}/model"', f'model = "{model}"')
    code, printed = play.run()
    assert code == 1
    assert "is not there, and all steps are done" in printed


def test_a_start_that_does_not_say_which_model(play):
    """The server has one model for ever; it is right with that one."""
    play.edit('"{model}", "faults/server"]', '"work/1/model", "faults/server"]')
    play.edit('model = "{folder}/model"\n', "")
    code, printed = play.run()
    assert code == 0, printed
    server = play.processes("server.py")
    for options in ((), ("--recover",)):
        code, printed = play.run(*options)
        assert code == 0, printed
        assert "damaged" not in printed
    assert play.processes("server.py") == server
    assert play.served()[0] == "work/1/model"


# The server, in more weather.


def test_a_server_that_is_about_to_end_is_not_taken_for_running(play):
    """It answers once more, and is gone."""
    play.reboot()
    play.fault("server", "dies 0.1")
    (play.folder / "server" / "intent.json").write_text('{"free": "stop", "names": []}')
    command = [sys.executable, "server.py", str(play.port), "work/1/model", "faults/server"]
    with subprocess.Popen(command, cwd=play.folder):
        end = time.monotonic() + 30
        while True:  # not by a request: it would count
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", play.port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.05)
        code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()


def test_a_server_that_does_not_answer_when_it_is_to_be_stopped(play):
    """It comes back with the model that it had, though it could not say which."""
    server = play.processes("server.py")[0]
    play.edit("stop-seconds = 2", "stop-seconds = 1")
    play.fault("llm-train", "fail-start")
    server.suspend()
    try:
        code, printed = play.run()
    finally:
        with contextlib.suppress(psutil.Error):
            server.resume()
    assert code == 1
    assert "step llm-train: exits with 3" in printed
    play.require_server()


def test_a_stop_command_that_outlives_its_run_stops_nothing_later(play):
    play.edit("stop-seconds = 2", 'stop-seconds = 20\nstop = ["sh", "late.sh"]')
    server = play.processes("server.py")[0].pid
    (play.folder / "late.sh").write_text(f"touch stopping; sleep 4; kill {server}; touch late\n")
    process = play.start()
    play.wait_for(play.folder / "stopping")
    kill(process)
    code, printed = play.run("--recover")
    assert code == 0, printed
    time.sleep(5)
    assert not (play.folder / "late").exists()
    play.require_server()


def test_a_stop_command_that_is_killed_after_it_told_the_server_to_end(play):
    """The server still answers, and is not taken for one that runs."""
    play.fault("server", "lingers 2")
    play.reboot()
    assert play.run("--recover")[0] == 0
    play.edit("stop-seconds = 2", 'stop-seconds = 20\nstop = ["sh", "stop.sh"]')
    server = play.processes("server.py")[0].pid
    (play.folder / "stop.sh").write_text(f"kill {server}; touch told; sleep 30\n")
    process = play.start()
    play.wait_for(play.folder / "told")
    kill(process)
    assert play.served() is not None
    code, printed = play.run("--recover")
    assert code == 0, printed
    assert play.processes("server.py")[0].pid != server
    time.sleep(2.5)
    play.require_server()


@pytest.mark.parametrize("at", first([1, 2, 4]))
def test_a_health_command_that_fails_once(play, at):
    """At each of its calls. The server is not given up, nor a second one started beside it."""
    (play.folder / "health.py").write_text(
        "import json, pathlib, sys, urllib.request\n"
        "calls = pathlib.Path('calls')\n"
        "number = len(calls.read_text()) + 1 if calls.exists() else 1\n"
        "calls.write_text('x' * number)\n"
        f"if number == {at}: sys.exit('cannot reach the server')\n"
        f"url = 'http://127.0.0.1:{play.port}/v1/models'\n"
        "print(json.load(urllib.request.urlopen(url, timeout=5))['data'][0]['id'])\n"
    )
    play.edit("stop-seconds = 2", 'stop-seconds = 2\nhealth = ["{python}", "health.py"]')
    code, printed = play.run()
    assert code == 0, printed
    assert len((play.folder / "calls").read_text()) >= at
    play.require_end()
    assert play.runs() == [*STEPS]


def test_a_kill_while_a_server_that_nobody_touched_is_started(play):
    """It was gone before the run began, so only its start is written down."""
    play.reboot()
    assert not play.intent.exists()
    play.fault("server", "slow 5")
    process = play.start("--recover")
    play.wait_for(play.intent)
    kill(process)
    play.reboot()
    assert play.intent.exists()
    code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()


def test_a_server_of_which_it_is_not_known_since_when_it_runs(play):
    """Another user's, whose processes are not shown: it is believed, and that is told."""
    code, printed = play.run()
    assert code == 0, printed
    (play.folder / "server" / "started.json").unlink()
    server = play.processes("server.py")
    play.broken = (
        "from ebm_encode.pipeline import right_model; right_model.listens_since = lambda _: None"
    )
    code, printed = play.run()
    assert code == 0, printed
    assert "it is not known since when it runs" in " ".join(printed.split())
    assert play.processes("server.py") == server
    play.require_server()


def test_a_server_that_did_not_stop_is_not_taken_for_stopped_by_the_next_run(play):
    (play.folder / "server" / "started.json").unlink()
    for _ in range(2):
        code, printed = play.run()
        assert code == 1
        assert "runs, and was not started here" in printed
        assert play.runs() == []
    play.edit("stop-seconds = 2", 'stop-seconds = 2\nstop = ["true"]')
    (play.folder / "server" / "intent.json").write_text('{"free": "stop", "names": []}')
    code, printed = play.run()
    assert code == 1
    assert "did not stop" in printed
    assert play.runs() == []


def test_a_configuration_that_lost_its_server(play):
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    whole = play.config.read_text()
    head, _, rest = whole.partition("[server]")
    play.config.write_text(
        head + rest[rest.index("[steps") :].replace('server = "stop"', "").replace(
            'server = "run"', ""
        )
    )  # fmt: skip
    for options in ((), ("--recover",)):
        code, printed = play.run(*options)
        assert code == 2
        assert "left the server there" in printed
        assert "the configuration has no such [server]" in printed
    play.config.write_text(whole)
    finish(play, ["llm-train"])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        *pairs(["", '{"names": "old", "free": "stop"}', "{}"], NOTES),
        *thorough(*itertools.product(["{", "[]", "null"], NOTES)),
    ],
)
def test_damaged_notes_do_not_keep_a_server_away(play, name, content):
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    (play.folder / "server" / name).write_text(content)
    code, printed = play.run("--recover")
    assert "Traceback" not in printed
    if name == "started.json":  # the intent says which model it had
        play.reboot()
        code, printed = play.run("--recover")
    assert code == 0, printed
    play.require_server()


@pytest.mark.parametrize("mark", ["null", '""', '"x"', "0"])
def test_a_damaged_note_owns_no_process(tmp_path, mark):
    path = tmp_path / "running.json"
    path.write_text(f'{{"name": "x", "mark": {mark}, "pid": 0, "created": 0}}')
    assert Started.read(path) is None


def test_a_session_id_that_somebody_else_has_by_now_owns_no_process():
    """A process whose session's leader is gone, as of daemons."""
    script = (
        "import os, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as leader:
        stranger = psutil.Process(int(leader.stdout.readline()))
        leader.wait()
        try:
            assert os.getsid(stranger.pid) == leader.pid
            for created in (0.0, stranger.create_time() - 1000, stranger.create_time()):
                assert Started("x", "0" * 32, leader.pid, created).processes() == []
        finally:
            stranger.kill()


def test_a_second_signal_does_not_leave_a_step_beside_the_server(play):
    (play.folder / "step.py").write_text(
        "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
        + (play.folder / "step.py").read_text()
    )
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
    process.communicate(timeout=60)
    assert play.processes() == []
    assert play.run("--recover")[0] == 0
    play.require_server()


@pytest.mark.parametrize("gap", first([0.0, 0.002, 0.05]))
def test_two_signals_end_a_step_before_the_server_comes_back(play, gap):
    play.fault("llm-train", "hang-middle")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    for number in (signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
        time.sleep(gap)
    process.communicate(timeout=60)
    assert process.returncode == 130
    play.require_server()
    finish(play, ["llm-train"])


def test_an_iteration_within_a_step_of_another_one_ends_with_it(play):
    (play.folder / "outer.toml").write_text(
        "[steps.outer]\ncommand = ['{python}', '-m', 'ebm_encode', 'iterate', 'iteration.toml',"
        " '--set', 'number=2']\noutputs = ['outer']\ntimeout-seconds = 60\n"
    )
    play.fault("llm-train", "hang-middle")
    command = [sys.executable, "-m", "ebm_encode", "iterate", str(play.folder / "outer.toml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as outer:
        play.wait_for(play.folder / "hanging")
        outer.send_signal(signal.SIGINT)
        outer.wait(60)
    assert play.processes() == []
    finish(play, ["llm-train"])


# Variants that are broken on purpose must fail what is checked here.


BROKEN = {
    "any model is the right one": (
        "from ebm_encode.pipeline import right_model; right_model.is_model = lambda *_: True"
    ),
    "nothing is written down before the server is stopped": (
        "from ebm_encode.pipeline import server; server.write_json = lambda *_: None"
    ),
    "processes that were left behind are not found": (
        "from ebm_encode.pipeline.processes import Started; Started.processes = lambda self: []"
    ),
    "contents of inputs are not compared": (
        "from ebm_encode.pipeline import plan; plan.digests_of = dict.fromkeys"
    ),
    "a step is done whatever it exits with": (
        "import subprocess; subprocess.Popen.returncode = property(lambda s: 0, lambda s, v: None)"
    ),
}


def weather(play):
    """A wrong model, a kill with a machine that starts again, a hang, a failure."""
    play.fault("server", "wrong")
    play.fault("llm-train", "hang-middle", "hang-middle", "fail-end")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    play.reboot()
    (play.folder / "server" / "started.json").unlink()
    assert play.run("--recover")[0] == 0
    play.require_server()
    (play.folder / "hanging").unlink()
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    assert play.run("--recover")[0] == 0
    play.require_server()
    assert play.run()[0] == 1
    play.require_server()
    assert play.run()[0] == 0
    play.require_end()
    play.change_data(7)
    assert play.run()[0] == 0
    play.require_end()


def test_the_weather_is_survived(play):
    weather(play)


@pytest.mark.parametrize("name", first(sorted(BROKEN, reverse=True), 2))
def test_a_broken_variant_does_not_survive_it(play, name):
    play.broken = BROKEN[name]
    with pytest.raises((AssertionError, OSError)):
        weather(play)
