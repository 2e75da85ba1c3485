"""`ebm-encode plan`: its numbers against counting by hand, and that it needs no weights."""

import json
import re
import shutil

import numpy as np
import pytest

from ebm_encode import Encoder
from support import SAMPLES, compare_nothing


@pytest.fixture
def plan(run_cli, llama):
    def run(*more, model=llama, files=(SAMPLES,)):
        return run_cli("plan", "--model-path", model, "--trajectories", *files, *more)

    return run


def test_the_numbers_are_those_of_counting_by_hand(plan, llama, states):
    code, out, _ = plan("--json", "--rate", 1000, "--max-batch-tokens", 700)
    assert code == 0
    report = json.loads(out)
    sequences = Encoder.load(llama).prompts.tokenize(sorted(states))
    lengths = sequences.lengths
    prefixes = {
        sequences[i][:n].tobytes() for i in range(len(lengths)) for n in range(1, lengths[i] + 1)
    }
    assert report["states"] == len(states)
    assert report["tokens"] == lengths.sum()
    assert report["unique_nodes"] == len(prefixes)
    assert len(prefixes) < report["window_nodes"] < lengths.sum()
    assert report["seconds"] == report["window_nodes"] / 1000
    for order, sequence in (("by text", lengths), ("by length", np.sort(lengths))):
        slots = sum(
            max(sequence[i : i + 32]) * len(sequence[i : i + 32]) for i in range(0, 430, 32)
        )
        assert report["padded_slots"][order] == slots
    assert sum(count for _, count in report["lengths"]) == len(states)
    for bound, count in report["lengths"]:
        assert count == ((lengths <= bound) & (lengths > (bound / 2 if bound > 8 else 0))).sum()


def test_the_forecast_is_what_encoding_then_puts_through_the_model(
    plan, llama, states, monkeypatch
):
    report = json.loads(plan("--json")[1])
    encoder = Encoder.load(llama)
    counted, windows = [], []
    embedding = encoder.model.base.get_input_embeddings()
    embedding.register_forward_hook(lambda _m, _i, out: counted.append(out[..., 0].numel()))
    engine = encoder.choice.engine
    right = engine.forward

    def forward(sequences, slots):  # a packed batch goes through the model in several chunks
        windows.append(len(sequences))
        return right(sequences, slots)

    monkeypatch.setattr(engine, "forward", forward)
    compare_nothing(encoder)
    encoder.encode(states)
    assert (len(windows), sum(counted)) == (report["windows"], report["window_nodes"])
    assert len(counted) > len(windows)


def test_what_it_prints(plan):
    code, out, _ = plan("--rate", 1000)
    assert code == 0
    for word in ("430", "unique tokens", "% padding", "expected time", "up to"):
        assert word in out


def test_no_weights_are_needed_and_bad_input_is_reported(plan, llama, tmp_path):
    light = shutil.copytree(llama, tmp_path / "light")
    (light / "model.safetensors").unlink()
    assert plan(model=light)[0] == 0
    code, _, err = plan("--column", "nope")
    assert (code, "no column 'nope'" in " ".join(err.split())) == (2, True)
    assert plan("--rate", "0")[0] == 2
    assert plan(model=tmp_path / "none")[0] == 2
    (light / "tokenizer.json").write_text("{")
    assert plan(model=light)[0] == 2


def test_packed_batches_are_those_that_a_bulk_run_plans(plan, monkeypatch):
    whole = json.loads(plan("--json")[1])
    monkeypatch.setattr("ebm_encode.bulk.forecast.CHUNK_STATES", 20)
    parts = json.loads(plan("--json")[1])
    assert parts["windows"] >= 430 / 20 > whole["windows"]
    assert parts["window_nodes"] > whole["window_nodes"]
    assert parts["unique_nodes"] == whole["unique_nodes"]


def test_what_encode_refuses_or_puts_aside_is_no_part_of_the_plan(plan, llama, tmp_path):
    code, _, err = plan("--max-length", 3000)
    assert (code, "reads at most 2048 tokens" in err) == (2, True)
    bare = shutil.copytree(llama, tmp_path / "bare")
    tokenizer = json.loads((bare / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "⊢"}, "content": ""}
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer))
    source = tmp_path / "s.jsonl"
    source.write_text('{"state_pp": "⊢"}\n{"state_pp": "⊢ b"}\n')
    code, out, _ = plan(model=bare, files=(source,))
    assert code == 0
    assert re.search(r"^states +1$", out, re.MULTILINE)
    assert re.search(r"^without a token +1$", out, re.MULTILINE)
    source.write_text('{"state_pp": "⊢"}\n')
    code, _, err = plan(model=bare, files=(source,))
    assert (code, "no state has a token" in err) == (2, True)


def test_cut_prompts_are_counted(plan, llama, states):
    report = json.loads(plan("--json", "--max-length", 60, "--overlong", "truncate")[1])
    lengths = Encoder.load(llama).prompts.tokenize(states).lengths
    assert report["truncated"] == (lengths > 60).sum()
    assert report["tokens"] == np.minimum(lengths, 60).sum()


def test_prompts_that_are_too_long_are_no_part_of_the_plan(plan, llama, states):
    code, out, _ = plan("--json", "--max-length", 60)
    report = json.loads(out)
    lengths = Encoder.load(llama).prompts.tokenize(states).lengths
    assert (code, report["too_long"]) == (0, (lengths > 60).sum())
    assert report["tokens"] == lengths[lengths <= 60].sum()
    code, _, err = plan("--max-length", 2)
    assert (code, "all prompts are longer than 2 tokens" in err) == (2, True)
    assert "hint: " in err
