"""`python/encode_embeddings.py`: the origin's flags, over `ebm-encode encode`."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from ebm_encode import open_cache
from ebm_encode.prompts.templates import Template
from served import served
from support import ROOT

SCRIPT = ROOT / "python" / "encode_embeddings.py"
NEEDED = ("--trajectories", "a.parquet", "b.parquet", "--output", "out.parquet")
ORIGINS = {
    "--model-path", "--encode-url", "--trajectories", "--output", "--cache", "--batch-size",
    "--max-length", "--checkpoint-interval", "--hidden-size", "--dtype",
}  # fmt: skip
"""Flags of the origin's script (commits f394c50 to 9053d51)."""


def run(*arguments, folder=None, environment=None):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture
def asked(tmp_path):
    """A function that gives the options of `ebm-encode` that flags become."""
    package = tmp_path / "stand-in" / "ebm_encode"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")

    def ask(*flags):
        done = run(*flags, environment={"PYTHONPATH": str(package.parent)})
        assert done.returncode == 0, done.stderr
        command, *given = json.loads(done.stdout)
        assert command == "encode"
        return given

    return ask


def option(given, name):
    """The value of an option that is given once, else `None`."""
    assert given.count(name) <= 1
    return given[given.index(name) + 1] if name in given else None


def test_the_flags_are_the_origins():
    done = run("--help")
    assert done.returncode == 0
    assert set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE)) == ORIGINS
    # Each has a case: --hidden-size below, with a model.
    tried = {
        "--model-path",
        "--hidden-size",
        *NEEDED,
        *(word for _, case in CASES for word in case),
    }
    assert tried >= ORIGINS


CASES = [
    ({"--model-path": "m", "--trajectories": "a.parquet", "--output": "out.parquet",
      "--dtype": "bfloat16", "--max-length": "2048", "--overlong": "truncate",
      "--template": "deepseek-prover-v2", "--backend": None, "--cache": None,
      "--batch-size": None, "--checkpoint-rows": None}, ()),
    ({"--backend": "remote", "--server": "http://h:1", "--dtype": None},
     ("--encode-url", "http://h:1")),
    ({"--backend": "remote", "--dtype": "float16"},
     ("--encode-url", "http://h:1", "--dtype", "float16")),
    ({"--cache": "old.parquet"}, ("--cache", "old.parquet")),
    ({"--batch-size": "7"}, ("--batch-size", "7")),
    ({"--max-length": "99"}, ("--max-length", "99")),
    ({"--checkpoint-rows": "500"}, ("--checkpoint-interval", "500")),
    ({"--dtype": "float32"}, ("--dtype", "float32")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "flags"), CASES)
def test_flags_become_options(asked, options, flags):
    given = asked("--model-path", "m", *NEEDED, *flags)
    for name, value in options.items():
        assert option(given, name) == value
    place = given.index("--trajectories")
    assert given[place + 1 : place + 3] == ["a.parquet", "b.parquet"]


def test_further_options_are_those_of_encode(asked):
    given = asked("--model-path", "m", *NEEDED, "--states-in", "lean", "--template=t.txt",
                  "--overlong", "skip", "--overwrite")  # fmt: skip
    assert given[-5:] == ["lean", "--template=t.txt", "--overlong", "skip", "--overwrite"]
    assert "--template" not in given
    assert option(given, "--overlong") == "skip"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (NEEDED, "--model-path is needed"),
        ((*NEEDED, "--encode-url", "http://h:1"), "hint: --model-path MODEL"),
        (("--model-path", "m", "--output", "o.parquet"), "required: --trajectories"),
        (("--model-path", "m", "--trajectories", "a"), "required: --output"),
        (("--model-path", "m", *NEEDED, "--dtype", "nf4"), "invalid choice: 'nf4'"),
        (("--model-path", "m", *NEEDED, "--batch-size", "x"), "invalid int value: 'x'"),
    ],
)
def test_what_is_refused(flags, told):
    done = run(*flags)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    """Two trajectory files that share states, and one with a finished proof."""
    folder = tmp_path_factory.mktemp("trajectories")
    for name, part in (("a", states[:12]), ("b", [*states[8:20], ""])):
        pq.write_table(pa.table({"state_pp": part}), folder / f"{name}.parquet")
    return [folder / "a.parquet", folder / "b.parquet"]


def plain(model, states, length):
    """Mean of the last hidden states by plain transformers, unbatched, cut at the right."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    template, means = Template.load("deepseek-prover-v2"), []
    with torch.inference_mode():
        for state in states:
            ids = tokenizer(
                template.prompt(state), truncation=True, max_length=length, return_tensors="pt"
            )
            means.append(loaded(**ids).last_hidden_state[0].mean(0).numpy())
    return np.stack(means)


def rows_of(path, states):
    found = open_cache(str(path))
    return np.stack([np.asarray(found.get(state)) for state in states])


def test_embeddings_are_those_of_plain_transformers(llama, states, files, tmp_path):
    output, length = tmp_path / "out.parquet", 80
    flags = ("--model-path", llama, "--trajectories", *files, "--dtype", "float32",
             "--max-length", length)  # fmt: skip
    size = transformers.AutoConfig.from_pretrained(llama).hidden_size
    done = run(*flags, "--output", output, "--batch-size", 3, "--checkpoint-interval", 5,
               "--hidden-size", size, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == report["encoded"] == 20
    table = pq.read_table(output)
    assert sorted(table["state_pp"].to_pylist()) == sorted(states[:20])
    right = plain(llama, states[:20], length)
    assert np.abs(rows_of(output, states[:20]) - right).max() <= 1e-5 * np.abs(right).max()

    # Another output, from that cache: nothing is encoded, and the rows are the same.
    other = tmp_path / "other.parquet"
    done = run(*flags, "--output", other, "--cache", output, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["encoded"] == 0
    assert np.array_equal(rows_of(other, states[:20]), rows_of(output, states[:20]))

    # A cache of another dtype is not taken.
    done = run("--model-path", llama, "--trajectories", *files, "--output", tmp_path / "b.parquet",
               "--max-length", length, "--cache", output)  # fmt: skip
    assert done.returncode == 2
    assert "dtype" in done.stderr


def test_embeddings_of_a_server(llama, states, files, tmp_path):
    output = tmp_path / "out.parquet"
    more = ("--template", "deepseek-prover-v2", "--dtype", "float32", "--max-length", "2048",
            "--overlong", "truncate")  # fmt: skip
    with served(llama, *more) as server:
        done = run("--encode-url", server.url, "--model-path", llama, "--trajectories", *files,
                   "--output", output, "--dtype", "float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    right = plain(llama, states[:20], 2048)
    assert np.abs(rows_of(output, states[:20]) - right).max() <= 1e-5 * np.abs(right).max()


def test_a_model_of_another_size_is_refused(llama, files, tmp_path):
    done = run("--model-path", llama, "--trajectories", *files, "--output",
               tmp_path / "out.parquet", "--hidden-size", 4096)  # fmt: skip
    assert done.returncode == 2
    assert "--hidden-size 4096" in done.stderr
    assert "hint: is it the right model?" in done.stderr
    assert not (tmp_path / "out.parquet").exists()
