"""The command line in bad weather: odd names, odd numbers, closed outputs, early interrupts."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.__main__ import run
from ebm_encode.data import trajectories
from matrix import pairs
from support import SAMPLES

SAMPLE = SAMPLES / "burnqed_roots.parquet"


@pytest.fixture
def encode(run_cli, llama, tmp_path):
    def run(*more, output=tmp_path / "out.parquet", files=(SAMPLE,)):
        code, out, err = run_cli(
            *("encode", "--model-path", llama, "--trajectories", *files),
            *("--output", output, "--json", *more),
        )
        return code, json.loads(out) if out else None, err

    return run


@pytest.fixture
def command(tmp_path, write_cache, rows):
    """A function that runs the command in a shell, beside a cache `c.parquet`."""
    write_cache(tmp_path / "c.parquet", ["⊢ a", "⊢ b", "⊢ c"], rows(3))

    def run(line, **environment):
        line = line.replace("ebm-encode", f"{sys.executable} -m ebm_encode")
        return subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ebm-encode audit c.parquet >&-", 0),
        ("ebm-encode audit c.parquet >/dev/full", 2),
        ("ebm-encode encode --help | true", 141),
        ("ebm-encode inspect c.parquet | true", 141),
        ("ebm-encode inspect no.parquet", 2),
    ],
)
def test_outputs_that_take_nothing(command, line, code):
    done = command(line)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_terminal_that_knows_only_ascii(command):
    done = command(
        "ebm-encode audit c.parquet; ebm-encode audit ⊢.parquet", PYTHONIOENCODING="ascii"
    )
    assert b"all good" in done.stdout
    assert b"\\u22a2.parquet" in done.stderr
    assert b"Traceback" not in done.stderr


def test_names_that_are_no_text(encode, run_cli, tmp_path):
    source = tmp_path / os.fsdecode(b"in\xff.parquet")
    output = tmp_path / os.fsdecode(b"out\xff.parquet")
    shutil.copy(SAMPLE, source)
    assert encode(files=[source], output=output)[0] == 0
    sources = EmbeddingCache.open(output).provenance[0]["sources"]
    assert sources[0]["path"].endswith(r"in\udcff.parquet")
    for name in ("audit", "inspect"):
        code, out, _ = run_cli(name, output)
        assert code == 0
        assert "250 " in out


def test_names_with_markup_stand_as_they_are(run_cli):
    code, _, err = run_cli("inspect", "[/bold]:smile:.parquet")
    assert code == 2
    assert "[/bold]:smile:.parquet" in err


@pytest.mark.parametrize("name", ["", "x" * 300, "x" * 300 + ".parquet", "loop", "loop.parquet"])
def test_names_that_lead_nowhere(encode, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    code, _, err = encode(files=[name])
    assert code == 2
    assert "error: " in err


@pytest.mark.parametrize(
    "options",
    [
        ("--batch-size", "1.5"),
        ("--batch-size", "0"),
        ("--checkpoint-rows", "9" * 30),
        ("--checkpoint-seconds", "nan"),
        ("--checkpoint-seconds", "0"),
        ("--max-length", "0"),
        ("--verify-sample", "-1"),
        ("--layer", "99"),
    ],
)
def test_numbers_without_meaning(encode, tmp_path, options):
    code, _, err = encode(*options)
    assert code == 2
    assert options[0] in err
    assert not list(tmp_path.iterdir())


def test_trajectories_without_a_file(encode):
    code, _, err = encode(files=[])
    assert code == 2
    assert "--trajectories: name at least one" in err


def test_json_nested_without_end(encode, tmp_path):
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 200_000)
    code, _, err = encode(files=[deep])
    assert code == 2
    assert "line 1: not JSON" in " ".join(err.split())


def test_an_input_that_changes_while_it_is_read(encode, tmp_path, monkeypatch):
    source = tmp_path / "growing.jsonl"
    source.write_text('{"state_pp": "a"}\n')
    digest = trajectories.digest_file

    def growing(file):
        with source.open("a") as more:
            more.write('{"state_pp": "b"}\n')
        return digest(file)

    monkeypatch.setattr(trajectories, "digest_file", growing)
    code, _, err = encode(files=[source])
    assert code == 2
    assert "changed while it was read" in " ".join(err.split())


def test_an_input_that_is_gone_after_it_was_read(encode, tmp_path, monkeypatch):
    source = tmp_path / "gone.parquet"
    shutil.copy(SAMPLE, source)
    expected = trajectories.digest_file(source)
    whole = trajectories.read_states

    def read_and_remove(*arguments, **options):
        states = whole(*arguments, **options)
        source.unlink()
        return states

    monkeypatch.setattr(trajectories, "read_states", read_and_remove)
    assert encode(files=[source])[0] == 0
    sources = EmbeddingCache.open(tmp_path / "out.parquet").provenance[0]["sources"]
    assert sources == [{"path": str(source), "digest": expected}]


def test_cut_states_stay_listed(encode, tmp_path):
    listed = tmp_path / "out.parquet.overlong.jsonl"
    _, first, _ = encode("--max-length", 60, "--overlong", "truncate")
    before = listed.read_bytes()
    assert first["truncated"] == before.count(b"\n") > 0
    _, again, _ = encode("--max-length", 60, "--overlong", "truncate")
    assert (again["truncated"], listed.read_bytes()) == (first["truncated"], before)
    other = tmp_path / "other.parquet"
    _, taken, _ = encode(
        *("--max-length", 60, "--overlong", "truncate", "--cache", tmp_path / "out.parquet"),
        output=other,
    )
    assert taken["from_caches"] == 250
    assert taken["truncated"] == first["truncated"]
    assert sorted((tmp_path / "other.parquet.overlong.jsonl").read_bytes().split(b"\n")) == sorted(
        before.split(b"\n")
    )


def test_overwriting_with_nothing_leaves_nothing_of_the_other_encoder(encode, tmp_path):
    encode()
    one = tmp_path / "one.jsonl"
    one.write_text('{"state_pp": "far too long for this"}\n')
    code, summary, _ = encode(
        *("--max-length", 2, "--overlong", "skip", "--overwrite"), files=[one]
    )
    assert (code, summary["rows"], summary["written"]) == (0, 0, True)
    assert len(EmbeddingCache.open(tmp_path / "out.parquet")) == 0


def test_audits_go_on_after_what_is_no_cache(run_cli, tmp_path, write_cache, rows):
    good = write_cache(tmp_path / "good.parquet", ["⊢ a", "⊢ b"], rows(2))
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:300])
    code, out, err = run_cli("audit", good, tmp_path / "cut.parquet", good)
    assert code == 2
    assert out.count("all good") == 2
    assert "cut.parquet" in " ".join(err.split())
    code, out, _ = run_cli("audit", "--json", tmp_path / "cut.parquet", good)
    assert [("error" in report) for report in json.loads(out)] == [True, False]
    code, _, err = run_cli("audit", "--examples", "-1", good)
    assert code == 2
    assert "--examples" in err


def test_an_empty_cache_is_not_called_good(run_cli, tmp_path, write_cache, rows):
    empty = write_cache(tmp_path / "empty.parquet", [], rows(0))
    code, out, _ = run_cli("audit", empty)
    assert code == 0
    assert "nothing to check" in out


class _Interrupting:
    """Ctrl-C while the command line is being imported."""

    def find_spec(self, name, *_):
        if name == "ebm_encode.cli":
            raise KeyboardInterrupt


def test_an_interrupt_while_the_model_loads_is_told(encode, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "load", interrupt)
    code, _, err = encode()
    assert code == 130
    assert err.endswith("interrupted\n")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_modules_load_is_quiet(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ebm_encode.cli")
    monkeypatch.setattr(sys, "meta_path", [_Interrupting(), *sys.meta_path])
    assert run() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("library", "error"),
    pairs(["torch", "transformers"], ["ImportError", "OSError", "RuntimeError"]),
)
@pytest.mark.parametrize("command", ["encode", "plan"])
def test_a_library_that_cannot_be_imported_is_reported(tmp_path, llama, command, library, error):
    (tmp_path / f"{library}.py").write_text(f"raise {error}('libsomething.so: not found')")
    source = tmp_path / "s.jsonl"
    source.write_text('{"state_pp": "⊢ a"}\n')
    arguments = [command, "--model-path", llama, "--trajectories", source]
    arguments += ["--output", tmp_path / "o.parquet"] if command == "encode" else []
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "ebm_encode", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    text = " ".join(done.stderr.split())
    assert done.returncode == 2, done.stderr
    assert f"error: {library} cannot be imported" in text
    assert "libsomething.so: not found" in text
    assert "hint: " in text
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.parquet.partial").exists()
