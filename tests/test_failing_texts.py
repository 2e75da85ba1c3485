"""States that the model fails on, in a bulk run: refused by name, and at no other's cost."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers

from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.engines.output import Pass
from ebm_encode.engines.runner import Runner
from ebm_encode.errors import EncodingError
from matrix import thorough


def test_a_state_that_the_reference_fails_on_goes_to_quarantine(
    encode, spoil, tmp_path, states, llama
):
    """The longest is compared with itself unbatched; then nothing can be said of its embedding."""
    tokens = Encoder.load(llama).prompts.tokenize(states)
    longest = int(tokens.lengths.argmax())
    assert (tokens.lengths == tokens.lengths[longest]).sum() == 1

    def fault(rows, sequences):
        if len(sequences[0]) == tokens.lengths[longest]:
            raise ValueError("no such position")
        return rows

    spoil(fault, unbatched=True)
    code, summary, _ = encode("--engine", "padded")
    assert (code, summary["rows"]) == (1, len(states) - 1)
    listed = (tmp_path / "out.parquet.quarantine.jsonl").read_text().splitlines()
    (record,) = map(json.loads, listed)
    assert (record["state"], record["kind"]) == (states[longest], "model_failed")
    assert "the model fails on its" in record["reason"]
    assert "ValueError: no such position" in record["reason"]


@dataclass
class OneText:
    """A state with a token that no other has, and what the model does to it."""

    state: str
    token: int
    fault: str | None = None


@pytest.fixture
def one_text(llama, states, monkeypatch):
    tokens = Encoder.load(llama).prompts.tokenize(states)
    found: dict[int, set[int]] = {}
    for i in range(len(states)):
        for token in tokens[i].tolist():
            found.setdefault(token, set()).add(i)
    text = next(OneText(states[min(own)], t) for t, own in found.items() if len(own) == 1)
    forward = transformers.LlamaModel.forward

    def faulty(self, input_ids, **rest):
        mine = (input_ids == text.token).any(dim=1)
        if text.fault == "model" and mine.any():
            raise ValueError("no such word")
        unbatched = len(input_ids) == 1
        if mine.any() and (
            text.fault == "memory" or (text.fault == "memory unbatched" and unbatched)
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")
        output = forward(self, input_ids, **rest)
        if text.fault in ("not finite", "once", "memory unbatched"):
            output.last_hidden_state[mine] = torch.nan
        if text.fault == "once" and mine.any():
            text.fault = None
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", faulty)
    return text


@pytest.mark.parametrize("engine", ["auto", "padded", *thorough("packed", "unbatched")])
def test_a_text_that_the_model_fails_on_costs_no_other(encode, one_text, tmp_path, states, engine):
    one_text.fault = "model"
    code, summary, _ = encode("--engine", engine, "--verify-sample", 10_000)
    assert (code, summary["rows"]) == (1, len(states) - 1)
    assert summary["engine"]["name"] == ("shared-prefix" if engine == "auto" else engine)
    listed = (tmp_path / "out.parquet.quarantine.jsonl").read_text().splitlines()
    (record,) = map(json.loads, listed)
    assert (record["state"], record["kind"]) == (one_text.state, "model_failed")
    assert "unbatched too (ValueError: no such word)" in record["reason"]
    assert summary["verification"]["rows"] == len(states) - 1


@pytest.mark.parametrize("fault", ["model", "memory", *thorough("once")])
def test_an_embedding_that_cannot_be_verified(encode, spoil, tmp_path, states, llama, fault):
    """An embedding without a reference is not valid; without the memory, nobody knows."""
    tokens = Encoder.load(llama).prompts.tokenize(states)
    counts = np.unique_counts(tokens.lengths)
    middle = counts.values[(counts.counts == 1) & (counts.values > 30)][0]
    state = states[int(np.flatnonzero(tokens.lengths == middle)[0])]

    failed = []

    def failing(rows, sequences):
        if len(sequences[0]) == middle and not (fault == "once" and failed):
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA") if fault == "memory" else ValueError("no")
        return rows

    spoil(failing, unbatched=True)
    code, summary, err = encode("--engine", "padded", "--verify-sample", 10_000)
    if fault == "model":
        assert code == 1
        assert f"{state[:60]!r}" in err
        assert "1 of 430 sampled embeddings are not those of their states" in " ".join(err.split())
        assert not (tmp_path / "out.parquet").exists()
        return
    assert (code, summary["rows"]) == (0, len(states))
    left_out = int(fault == "memory")
    assert summary["verification"]["rows"] == len(states) - left_out
    assert summary["verification"]["not_compared"] == left_out
    assert ("is not verified" in err) == (fault == "memory")


def test_a_run_of_which_nothing_can_be_verified_is_none(encode, tmp_path, states, monkeypatch):
    """For example because another process has the memory by then. What is encoded is kept."""

    def full(_, sequence):
        raise EncodingError(f"out of memory, though encoded unbatched ({len(sequence)} tokens)")

    monkeypatch.setattr(Encoder, "run_unbatched", full)
    code, _, err = encode()
    assert (code, (tmp_path / "out.parquet").exists()) == (2, False)
    assert "sampled embeddings can be verified" in " ".join(err.split())
    monkeypatch.undo()
    code, summary, _ = encode()
    assert (code, summary["rows"], summary["encoded"]) == (0, len(states), 0)
    assert summary["verification"]["drawn"] == 32


@pytest.mark.parametrize(
    "fault", ["model", "memory", *thorough("not finite", "memory unbatched", "once")]
)
def test_a_resumed_run_drops_what_the_model_now_makes_no_embedding_of(
    encode, one_text, tmp_path, states, monkeypatch, fault
):
    """Saved states go through the model again where they share a batch with some that are not."""
    run = Runner.run_all

    def stopped(self, works):
        """Ends within the batch of that text."""
        for work, batch in run(self, works):
            if any(one_text.token in work.tokens[i] for i in batch.indices[:-1]):
                first = range(len(batch.indices) - 1)
                yield work, Pass(batch.slots.select(first), indices=batch.indices[:-1])
                raise KeyboardInterrupt
            yield work, batch

    monkeypatch.setattr(Runner, "run_all", stopped)
    assert encode("--engine", "padded", "--checkpoint-rows", 1)[0] == 130
    monkeypatch.setattr(Runner, "run_all", run)
    one_text.fault, output = fault, tmp_path / "out.parquet"
    code, summary, err = encode("--engine", "padded")
    if fault in ("memory", "memory unbatched", "once"):  # with which it was right when it was saved
        assert (code, summary["rows"], summary["quarantined"]) == (0, len(states), [])
        assert summary["already_there"] + summary["encoded"] == len(states)
        assert one_text.state in EmbeddingCache.open(output).states()
        return
    assert (code, output.exists()) == (1, False)
    assert "is not its own" in " ".join(err.split())
    assert encode("--engine", "padded")[0] == 1, "nor does a later run"
    one_text.fault = None
    assert encode("--engine", "padded", "--overwrite")[0] == 0
