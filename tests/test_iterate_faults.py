"""Iterations in bad weather: the server is back at the end or after the next command, always with
the right model, and nothing that was done is done again."""

import signal
import time

import pytest

from iterations.play import STEPS, Play, kill


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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_step_that_fails(play, step, place):
    play.fault(step, f"fail-{place}")
    code, printed = play.run()
    assert code == 1
    assert f"step {step}: exits with 3" in printed
    assert "CUDA error: an illegal memory access" in printed
    assert "the same command resumes" in printed
    play.require_server()
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_step_that_hangs_and_a_run_that_is_killed(play, step, place):
    play.fault(step, f"hang-{place}")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    # The step goes on; the next command ends it first.
    assert len(play.processes()) == 1
    assert play.intent.exists() or step == "search"
    finish(play, [*STEPS[: STEPS.index(step) + 1]])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", STEPS)
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


@pytest.mark.parametrize("step", STEPS)
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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
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


@pytest.mark.parametrize("step", STEPS)
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


@pytest.mark.parametrize("fault", ["crash", "wrong", "dies 0", "dies 0.2", "slow 4", "stubborn"])
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


@pytest.mark.parametrize("place", ["start", "middle", "end"])
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


# Variants that are broken on purpose must fail what is checked here.


BROKEN = {
    "any model is the right one": (
        "from ebm_encode.pipeline import server; server.is_model = lambda *_: True"
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
    play.fault("llm-train", "hang-middle", "hang-middle", "fail-start")
    process = play.start()
    play.wait_for(play.folder / "hanging")
    kill(process)
    play.reboot()
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


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_variant_does_not_survive_it(play, broken):
    play.broken = broken
    with pytest.raises((AssertionError, OSError)):
        weather(play)
