"""`ebm-prover score`: states in, scores of the head out, line by line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ebm_encode import Encoder, EnergyHead
from head_files import head_of, perceptrons, save_head
from matrix import first
from support import PROVER

DIMS = [64, 24, 1]


@pytest.fixture(scope="module")
def encoder(llama):
    return Encoder.load(llama)


@pytest.fixture
def head(encoder, tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, perceptrons(DIMS, 2), head_of(encoder.identity, DIMS, 2))
    return path


@pytest.fixture
def command(llama, head):
    """The program and its environment; more options may follow."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    start = [PROVER, "score", "--head", head, "--model-path", llama]

    def make(*options):
        return {
            "args": [str(part) for part in (*start, *options)],
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    return make


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def score(command, rows, *options):
    """Runs it over some lines."""
    text = rows if isinstance(rows, str) else lines_of(rows)
    done = subprocess.run(**command(*options), input=text, check=False)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_scores_are_the_heads_in_the_order_of_the_lines(command, encoder, head, states):
    some = [*states[:5], states[1]]
    rows = [{"state_pp": state, "id": i, "deep": {"x": [i]}} for i, state in enumerate(some)]
    rows.insert(2, {"state_pp": "", "is_proof_complete": True, "id": "end"})
    rows.insert(4, {"state_pp": None, "is_proof_complete": True})
    rows[0] |= {"score": 99, "unscored": "of an earlier run", "is_proof_complete": False}
    done, found = score(command, rows, "--max-batch", "3")
    assert done.returncode == 0, done.stderr
    assert len(found) == len(rows)
    energies = iter(EnergyHead.open(head).energies(encoder.encode(some)))
    for row, line in zip(rows, found, strict=True):
        if row.get("is_proof_complete"):
            assert line == row | {"finished": True}
            continue
        energy = next(energies)
        assert line["energy"] == pytest.approx(energy, abs=1e-4)
        assert line["score"] == -line["energy"]
        assert line["z"] == pytest.approx((line["score"] - -0.75) / 2.0, abs=1e-6)
        assert line["state_pp"] == row["state_pp"]
        assert (line["id"], line["deep"]) == (row["id"], row["deep"])
        assert not {"unscored", "finished"} & {*line}


def test_a_file_gives_what_standard_input_gives(command, states, tmp_path):
    file = tmp_path / "states.jsonl"
    rows = [{"state_pp": state} for state in states[:6]]
    file.write_text("\ufeff" + lines_of(rows).replace("\n", "\r\n\n"), encoding="utf-8")
    done, found = score(command, "", "--states", file)
    assert done.returncode == 0, done.stderr
    assert [line["state_pp"] for line in found] == states[:6]
    assert found == score(command, rows)[1] == score(command, rows, "--states", "-")[1]


def test_what_has_no_score_says_why(command):
    rows = [{"state_pp": "n : ℕ " * 100}, {"state_pp": "⊢ True"}, {"state_pp": ""}]
    done, found = score(command, rows, "--max-length", "40", "--overlong", "skip")
    assert done.returncode == 1, done.stderr
    assert "tokens are too many" in found[0]["unscored"]
    assert not {"energy", "score", "z"} & {*found[0]}
    assert "energy" in found[1]
    assert found[2]["unscored"] == "the text of an open state is empty"
    assert "2 of 3 states unscored" in done.stderr


def test_a_line_comes_out_before_the_next_goes_in(command, states):
    """As a search does that asks for one node's children, and waits."""
    with subprocess.Popen(**command(), stdin=subprocess.PIPE, bufsize=1) as process:
        for number, state in enumerate(states[:3]):
            process.stdin.write(lines_of([{"state_pp": state, "id": number}] * 2))
            process.stdin.flush()
            assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [number] * 2
        process.stdin.close()
        assert process.stdout.read() == ""
        assert process.wait(timeout=60) == 0, process.stderr.read()


WRONG = {
    "no JSON": ('{"state_pp": "x"', "line 3: is not JSON: EOF"),
    "no object": ('"⊢ True"', "line 3: is not an object"),
    "no state": ('{"state": "x"}', 'line 3: has no "state_pp"'),
    "null": ('{"state_pp": null}', 'line 3: "state_pp" is null, expected a text'),
    "flag": ('{"state_pp": "x", "is_proof_complete": 1}', 'line 3: "is_proof_complete" is 1'),
}


@pytest.mark.parametrize("kind", first(WRONG))
def test_a_wrong_line_ends_it_after_what_came_before(command, states, kind):
    good, (line, message) = lines_of([{"state_pp": states[0]}]), WRONG[kind]
    done, found = score(command, f"{good}\n{line}\n{good}")
    assert done.returncode == 2
    assert message in done.stderr
    assert [row["state_pp"] for row in found] == [states[0]]
    assert "energy" in found[0]


def test_a_file_that_is_no_text_is_refused_by_its_line(command, tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'\n{"state_pp": "\xe9"}\n')
    done, _ = score(command, "", "--states", file)
    assert done.returncode == 2
    assert f"{file}: line 2: is not UTF-8 text" in done.stderr


def test_a_different_encoder_is_refused_with_the_fields(command, make_model, states):
    other = make_model("llama", seed=77)
    arguments = command()
    arguments["args"][arguments["args"].index("--model-path") + 1] = str(other)
    text = lines_of([{"state_pp": states[0]}])
    done = subprocess.run(**arguments, input=text, check=False)
    assert done.returncode == 2
    assert "trained on embeddings of a different encoder than the encoder; different: weights" in (
        done.stderr
    )
    assert done.stdout == ""
    done, _ = score(command, text, "--allow-other-identity")
    assert done.returncode == 2
    assert "unexpected argument" in done.stderr


def test_a_cache_answers_first_and_must_be_of_the_same_encoder(
    command, encoder, head, write_cache, rows, tmp_path
):
    same, other = tmp_path / "same.parquet", tmp_path / "other.parquet"
    identity = json.loads(encoder.identity.to_json())
    texts, stored = ["in the cache", "also"], rows(2, 64)
    write_cache(same, texts, stored, **identity)
    done, found = score(command, [{"state_pp": text} for text in texts], "--cache", same)
    assert done.returncode == 0, done.stderr
    right = EnergyHead.open(head).energies(stored)
    assert np.array([line["energy"] for line in found], np.float32).tolist() == right.tolist()
    write_cache(other, texts, stored, **identity | {"template": "other {state}"})
    done, found = score(command, [{"state_pp": texts[0]}], "--cache", other)
    assert done.returncode == 2
    assert "other.parquet; different: template" in done.stderr
    assert not found


def test_a_file_that_is_no_head_is_refused_before_the_model_is_loaded(command, head):
    head.write_bytes(head.read_bytes()[:-1])
    arguments = command()
    arguments["args"][arguments["args"].index("--model-path") + 1] = "nowhere"
    done = subprocess.run(**arguments, input="", check=False)
    assert done.returncode == 2
    assert "head.safetensors: not a safetensors file, cut off or damaged" in done.stderr
