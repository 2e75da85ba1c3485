"""`ebm-prover --backend remote`: the real program with a server, and without Python."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from contract_server import serve
from ebm_encode import EmbeddingCache, Encoder, EnergyHead
from head_files import head_of, perceptrons, save_head
from served import served
from support import PROVER, SAMPLES

SEARCHES = SAMPLES / "reprover_search_log.parquet"


def prover(*arguments, **variables):
    """Runs it where there is no Python."""
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.run(
        [str(PROVER), *map(str, arguments)],
        text=True,
        check=False,
        capture_output=True,
        timeout=300,
        env=environment | {"PATH": "/no/such", "RUST_BACKTRACE": "0"} | variables,
    )


def remote(command, serving, *arguments, **variables):
    return prover(command, "--backend", "remote", "--server", serving.url, *arguments, **variables)


@pytest.fixture(scope="module")
def encoder(llama):
    return Encoder.load(llama, overlong="skip")


@pytest.fixture
def file(states, tmp_path):
    path = tmp_path / "states.jsonl"
    path.write_text("\n".join(json.dumps({"state_pp": s}) for s in states[:40]))
    return path


def plain(folder, texts):
    """Means of last hidden states, by transformers, one text at a time."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        hidden = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    return np.stack([states[0].mean(0).numpy() for states in hidden])


def test_embeddings_are_those_of_plain_transformers(llama, encoder, states, file):
    with serve(encoder) as serving:
        result = remote("encode", serving, "--states", file, "--json")
    assert result.returncode == 0, result.stderr
    given = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["state_pp"] for row in given] == states[:40]
    rows = np.array([row["embedding"] for row in given], np.float32)
    right = plain(llama, states[:40])
    assert np.abs(rows - right).max() / np.abs(right).max() <= 1e-5
    assert max(serving.sizes) <= 16
    assert sum(serving.sizes) == 40


def test_what_has_no_embedding_is_reported(encoder, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("n : ℕ " * 3000)
    with serve(encoder) as serving:
        result = remote("encode", serving, "--states", file)
    assert result.returncode == 1, result.stderr
    assert "tokens are too many" in result.stdout
    assert "0 of 1 states encoded" in result.stdout


def test_a_replay_appends_what_a_model_in_process_appends(encoder, tmp_path):
    path = tmp_path / "c.parquet"
    arguments = ["--trajectories", SEARCHES, "--theorems", "2", "--append-to", path, "--json"]
    with serve(encoder) as serving:
        result = remote("replay", serving, *arguments)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["python_share"] is None
    assert said["encoder"] == encoder.identity.digest
    cache = EmbeddingCache.open(str(path))
    right = encoder.encode(cache.states())
    assert np.abs(cache.matrix() - right).max() / np.abs(right).max() <= 1e-5
    assert cache.identity == encoder.identity


@pytest.fixture
def head(encoder, tmp_path):
    dims = [encoder.dim, 24, 1]
    path = tmp_path / "head.safetensors"
    save_head(path, perceptrons(dims, 2), head_of(encoder.identity, dims, 2))
    return path


def test_scores_are_those_of_the_head(llama, encoder, states, head, file):
    cache = head.with_name("cache")
    cache.mkdir()
    with serve(encoder) as serving:
        result = remote("score", serving, "--head", head, "--states", file)
        searched = remote(
            *("search", serving, "--head", head, "--trajectories", SEARCHES, "--first", "30"),
            *("--ranking", "head"),
            *("--append-to", cache, "--json"),
        )
    assert result.returncode == 0, result.stderr
    found = [json.loads(line)["energy"] for line in result.stdout.splitlines()]
    right = EnergyHead.open(str(head)).energies(plain(llama, states[:40]))
    assert np.abs(np.array(found) - right).max() <= 1e-4 * max(1, np.abs(right).max())
    assert searched.returncode == 0, searched.stderr
    assert json.loads(searched.stdout)["unscored"] == 0
    assert EmbeddingCache.open(str(cache)).identity == encoder.identity


def test_doctor_checks_a_server(encoder):
    with serve(encoder) as serving:
        result = remote("doctor", serving)
    assert result.returncode == 0, result.stderr
    for text in ["server     ebm-encode 0.1.0", "engine     an engine", "64 pass", "all good"]:
        assert text in result.stdout
    assert f"encoder    {encoder.identity.digest}" in result.stdout


def test_another_model_after_a_restart_is_reported(encoder, make_model):
    other = Encoder.load(make_model(seed=7))

    def restart(serving):
        serving.encoder = other

    with serve(encoder, after=restart) as serving:
        arguments = ["--trajectories", SEARCHES, "--theorems", "4", "--threads", "1"]
        result = remote("replay", serving, *arguments)
    assert result.returncode == 1, result.stderr
    digests = f"identity is {other.identity.digest}, expected {encoder.identity.digest}"
    assert "has another encoder: its " + digests in result.stderr


def test_a_server_that_dies_is_reported(encoder, file):
    with serve(encoder, dies=True) as serving:
        result = remote("encode", serving, "--states", file)
    assert result.returncode == 2
    assert "no connection" in result.stderr
    assert "(6 attempts)" in result.stderr
    assert "\nhint: is `ebm-encode serve` running there?" in result.stderr


def test_wrong_answers_are_1(encoder, file):
    with serve(encoder, change=lambda rows: rows[1:]) as serving:
        result = remote("encode", serving, "--states", file)
    assert result.returncode == 1
    assert "UnsafeServerError: " in result.stderr
    # How many are asked for depends on which callers were merged.
    rows, asked = re.search(r"(\d+) rows, and (\d+) were asked for", result.stderr).groups()
    assert int(rows) == int(asked) - 1


def test_a_token_is_read_from_a_file_or_the_environment_and_not_shown(encoder, file, tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret-t0ken\n")
    with serve(encoder, token="s3cret-t0ken") as serving:
        results = [
            remote("encode", serving, "--states", file, "--server-token-file", token),
            remote("encode", serving, "--states", file, EBM_ENCODE_TOKEN="s3cret-t0ken"),
            remote("encode", serving, "--states", file, EBM_ENCODE_TOKEN="wr0ng", RUST_LOG="trace"),
            remote("encode", serving, "--states", file),
        ]
        token.write_text("s3cret-t0ken")
        arguments = ["--states", file, "--server-token-file", token]
        results.append(remote("encode", serving, *arguments, RUST_LOG="trace"))
        missing = remote("encode", serving, "--states", file, "--server-token-file", "none.txt")
    assert [result.returncode for result in results] == [0, 0, 2, 2, 0], results[-1].stderr
    for result in results[2:4]:
        assert "status 401: no token\nhint: give the token" in result.stderr
    assert not any("s3cret" in r.stderr or "wr0ng" in r.stderr for r in results)
    assert missing.returncode == 2
    assert "none.txt: No such file" in missing.stderr


def test_a_form_of_states_that_the_server_does_not_take_is_refused(encoder, file):
    with serve(encoder) as serving:
        arguments = ["--states", file, "--state-format", "lean", "--states-in", "lean"]
        result = remote("encode", serving, *arguments)
    assert result.returncode == 2
    assert "--state-format lean: the server's encoder takes as-given\nhint: " in result.stderr


def with_model(kind, url, llama, file, *more):
    """Encodes with a server of another software, and the model here."""
    server = ["--backend", kind, "--server", url, *more]
    arguments = ["--model-path", llama, "--states", file, "--json"]
    return prover("encode", *server, *arguments, VIRTUAL_ENV=sys.prefix, PATH=os.environ["PATH"])


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_other_servers_are_asked_through_python(kind, stand_in, llama, states, file):
    result = with_model(kind, stand_in.play(kind, llama), llama, file)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line)["embedding"] for line in result.stdout.splitlines()]
    right = plain(llama, states[:40])
    assert np.abs(np.array(rows) - right).max() / np.abs(right).max() <= 1e-5
    assert any(request["method"] == "POST" for request in stand_in.requests())


def test_an_old_sglang_server_has_to_be_exclusive(stand_in, llama, file):
    url = stand_in.play("sglang-old", llama)
    refused = with_model("sglang", url, llama, file)
    assert refused.returncode in (1, 2)
    assert "--server-exclusive" in refused.stderr or "server_exclusive" in refused.stderr
    result = with_model("sglang", url, llama, file, "--server-exclusive")
    assert result.returncode == 0, result.stderr


SERVER = ["--server", "http://127.0.0.1:9"]
REMOTE = ["--backend", "remote"]
SOME_MODEL = ["--model-path", "/no/such"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SERVER, *SOME_MODEL], "--server: --backend hf uses no server"),
        (["--backend", "hf", *SERVER], "--server: --backend hf uses no server"),
        (REMOTE, "--backend remote: needs a server"),
        (["--backend", "sglang", *SOME_MODEL], "--backend sglang: needs a server"),
        (["--backend", "vllm", *SERVER], "--backend vllm: needs a model"),
        ([*REMOTE, *SERVER, *SOME_MODEL], "--model-path: --backend remote has the model"),
        (
            [*REMOTE, *SERVER, "--dtype", "float32", "--layer", "-2", "--trust-remote-code"],
            "--dtype, --layer, --trust-remote-code: --backend remote has the model of its server",
        ),
        ([*REMOTE, *SERVER, "--server-exclusive"], "--server-exclusive: is for --backend sglang"),
        (
            [*SOME_MODEL, "--server-token-file", "t", "--server-exclusive"],
            "--server-token-file, --server-exclusive: --backend hf uses no server",
        ),
    ],
)
@pytest.mark.parametrize("command", ["encode", "replay", "doctor", "score", "search"])
def test_options_that_do_not_belong_together_are_2(command, arguments, message):
    files = {
        "encode": ["--states", "none"],
        "replay": ["--trajectories", "none"],
        "doctor": [],
        "score": ["--head", "none"],
        "search": ["--trajectories", "none"],
    }
    result = prover(command, *arguments, *files[command])
    assert result.returncode == 2
    assert message in result.stderr
    assert "\nhint: " in result.stderr
    assert "panicked" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "hf"], "--backend hf: needs a model\nhint: "),
        ([*REMOTE, "--server", "127.0.0.1:9"], "is no URL"),
        ([*REMOTE, "--server", "http://u:p@h"], "a user or a password"),
    ],
)
def test_a_wrong_address_is_2(arguments, message, file):
    result = prover("encode", *arguments, "--states", file)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_search_with_a_server_needs_a_head():
    result = prover("search", *REMOTE, *SERVER, "--trajectories", SEARCHES)
    assert result.returncode == 2
    assert "--backend: serves a head\nhint: give --head" in result.stderr


def test_the_real_server_answers_the_prover(llama, encoder, states, head, file):
    with served(llama, "--overlong", "skip") as server:
        result = prover(
            "encode", "--backend", "remote", "--server", server.url, "--states", file, "--json"
        )
        assert result.returncode == 0, result.stderr
        rows = [json.loads(line)["embedding"] for line in result.stdout.splitlines()]
        right = plain(llama, states[:40])
        assert np.abs(np.array(rows, np.float32) - right).max() <= 1e-5 * np.abs(right).max()
        common = ["--backend", "remote", "--server", server.url, "--head", head, "--states", file]
        scored = prover("score", *common)
        assert scored.returncode == 0, scored.stderr
    found = [json.loads(line)["energy"] for line in scored.stdout.splitlines()]
    energies = EnergyHead.open(head).energies(encoder.encode(states[:40]))
    assert np.allclose(found, energies, atol=1e-4)
    gone = prover("encode", "--backend", "remote", "--server", server.url, "--states", file)
    assert gone.returncode == 2
    assert "hint:" in gone.stderr
