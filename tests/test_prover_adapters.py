"""`ebm-prover` with `--adapter`: the option reaches the model, and its identity counts."""

import json
import os
import subprocess
import sys

import pytest

import adapters
from ebm_encode import Encoder, EnergyHead
from head_files import head_of, perceptrons, save_head
from support import PROVER, ROOT

DIMS = [64, 24, 1]
RECORD = ROOT / "searches" / "lean_core.parquet"


@pytest.fixture(scope="module")
def lora(llama, tmp_path_factory):
    return adapters.train(llama, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def encoder(llama, lora):
    return Encoder.load(llama, adapter=lora)


@pytest.fixture
def head(encoder, tmp_path):
    """A head over embeddings of the model with the adapter."""
    path = tmp_path / "head.safetensors"
    save_head(path, perceptrons(DIMS, 2), head_of(encoder.identity, DIMS, 2))
    return path


def prover(*arguments, text=""):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, *arguments)]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env=environment
    )


def test_scores_are_those_of_the_model_with_the_adapter(llama, lora, encoder, head, states):
    some = states[:6]
    text = "".join(json.dumps({"state_pp": state}) + "\n" for state in some)
    score = ("score", "--head", head, "--model-path", llama)
    done = prover(*score, "--adapter", lora, text=text)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["energy"] for line in done.stdout.splitlines()]
    assert found == pytest.approx(EnergyHead.open(head).energies(encoder.encode(some)), abs=1e-4)
    without = prover(*score, text=text)
    assert without.returncode == 2
    assert "adapter" in without.stderr


def test_what_is_no_adapter_is_refused_by_name(llama, head, tmp_path):
    done = prover("score", "--head", head, "--model-path", llama, "--adapter", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: has no adapter_config.json" in done.stderr


def test_a_search_takes_the_adapter_or_says_why_not(llama, lora, head, tmp_path):
    search = ("search", "--trajectories", RECORD, "--first", "2", "--max-expansions", "3")
    scored = (*search, "--head", head, "--ranking", "head", "--model-path", llama)
    done = prover(*scored, "--adapter", lora, "--json")
    assert done.returncode in {0, 1}, done.stderr
    assert json.loads(done.stdout)["unscored"] == 0
    remote = ("--backend", "remote", "--server", "http://127.0.0.1:9")
    for arguments, said in (
        (scored, "adapter"),
        ((*search, "--adapter", lora), "--adapter: is of a model in this process"),
        (
            (*scored, "--policy", "hf", "--policy-model", tmp_path, "--adapter", lora),
            "--adapter: belongs to one model",
        ),
        (
            (*search, "--head", head, "--ranking", "head", *remote, "--adapter", lora),
            "--adapter: --backend remote has the model of its server",
        ),
    ):
        done = prover(*arguments)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
