"""`main` called by a host process, which keeps its threads, signal handlers and standard output."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from ebm_encode.cli import main


@pytest.fixture
def cache(tmp_path, write_cache, rows):
    return str(write_cache(tmp_path / "c.parquet", ["⊢ a", "⊢ b"], rows(2)))


def test_it_runs_off_the_main_thread(cache, capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["audit", cache])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "all good" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["audit"], ["nonsense"], ["--help"]])
def test_signal_handlers_are_the_hosts_again(arguments):
    def handler(*_):
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        main(arguments)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_polite_end_is_taken_like_an_interrupt_meanwhile(cache, monkeypatch):
    def end(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setattr("ebm_encode._core.audit", end)
    assert main(["audit", cache]) == 130


class FullDisk(io.StringIO):
    """A host's own standard output, which is no file of the system."""

    error = OSError(28, "No space left on device")

    def write(self, _text):
        raise self.error


class Gone(FullDisk):
    error = BrokenPipeError()


@pytest.mark.parametrize(("stdout", "code"), [(FullDisk, 2), (Gone, 141)])
def test_a_replaced_standard_output_that_fails_is_an_exit_code(cache, monkeypatch, stdout, code):
    monkeypatch.setattr(sys, "stdout", stdout())
    assert main(["audit", cache]) == code


def test_standard_output_of_a_host_stays_as_it_was(cache, tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="ascii", errors="strict") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["inspect", cache]) == 0
        assert out.errors == "strict"


def test_a_closed_pipe_of_a_host_is_not_redirected(cache):
    """The host finds it closed, too, and does what it does then."""
    host = (
        "import os, sys; from ebm_encode.cli import main\n"
        "sys.stdin.readline()\n"
        f"code = main(['inspect', {cache!r}])\n"
        "print(code, os.path.realpath('/proc/self/fd/1'), file=sys.stderr, flush=True)\n"
        "os._exit(0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", host],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    process.stdout = None
    _, told = process.communicate("go\n")
    code, output = told.split()
    assert code == "141"
    assert "pipe" in output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["encode", "--output", ""], "--output: is empty"),
        (["encode", "--model-path", ""], "--model-path: is empty"),
        (["encode", "--template", ""], "--template: is empty"),
        (["encode", "--cache", ""], "--cache: is empty"),
        (["encode", "--trajectories", ""], "--trajectories: name at least one"),
        (["plan", "--model-path", ""], "--model-path: is empty"),
        (["inspect", ""], "is empty"),
        (["audit", "{cache}", ""], "is empty"),
        (["compact", ""], "is empty"),
    ],
)
def test_an_empty_name_is_not_the_working_folder(
    run_cli, cache, tmp_path, monkeypatch, arguments, named
):
    """Which an unset variable of a shell would be."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    needed = {"--model-path": "m", "--trajectories": "t.jsonl"}
    if arguments[0] == "encode":
        needed["--output"] = "o.parquet"
    more = needed.items() if arguments[0] in ("encode", "plan") else ()
    given = [text.format(cache=cache) for text in arguments]
    given += [part for name, value in more if name not in given for part in (name, value)]
    code, out, err = run_cli(*given)
    assert (code, out) == (2, "")
    assert named in err
    assert sorted(tmp_path.iterdir()) == before
