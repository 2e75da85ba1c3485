"""Help and usage errors come at once: no command imports heavy libraries before it runs."""

import json
import subprocess
import sys

import pytest

from ebm_encode.cli import COMMANDS

HEAVY = {"torch", "transformers", "pyarrow", "tokenizers", "huggingface_hub", "blake3"}


def loaded(*arguments):
    """The exit code, the lines printed and the modules of a fresh process that ran a command."""
    script = (
        "import json, sys\nfrom ebm_encode.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    *printed, last = done.stdout.splitlines()
    code, modules = json.loads(last)
    return code, printed, {*modules}


def test_every_command_is_listed():
    code, printed, _ = loaded("--help")
    assert code == 0
    for name in COMMANDS:
        assert any(f"│ {name} " in line for line in printed), name


@pytest.mark.parametrize(
    "command", ["", "--help", "--version", *(f"{name} --help" for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(command):
    code, printed, modules = loaded(*command.split())
    assert code == 0
    assert printed
    assert not HEAVY & modules


def test_what_is_heavy_would_be_seen(tmp_path):
    """So that the test above can fail: `encode` reads its inputs with pyarrow."""
    states = tmp_path / "s.jsonl"
    states.write_text("")
    _, _, modules = loaded(
        *("encode", "--model-path", "x", "--trajectories", str(states)),
        *("--output", str(tmp_path / "o.parquet")),
    )
    assert "pyarrow" in modules


@pytest.mark.parametrize("command", ["inspect", "audit", "compact"])
def test_commands_on_caches_import_nothing_heavy(tmp_path, write_cache, rows, command):
    folder = tmp_path / "cache"
    folder.mkdir()
    write_cache(folder, ["a", "b"], rows(2))
    code, _, modules = loaded(command, str(folder))
    assert code == 0
    assert not HEAVY & modules
