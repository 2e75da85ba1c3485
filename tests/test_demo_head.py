"""The steps of `make demo-head` that are not commands of ours."""

import json

import pytest
import transformers

import demo_head
import train_model
from recorded_searches import embeddings, searches, write_rows
from support import write_plain_cache


def test_zeroed_rows_pass_the_writer_by_and_are_caught(tmp_path, run_cli):
    states, made = embeddings(searches(10))
    cache = write_plain_cache(tmp_path / "states.parquet", states, made)
    lost = demo_head.zero_rows(cache, tmp_path / "zeroed.parquet")
    assert 0.05 < lost / len(states) < 0.25
    code, out, _ = run_cli("audit", tmp_path / "zeroed.parquet", "--json")
    assert code == 1
    assert json.loads(out)[0]["bad"] == {"zero_norm": lost}


def test_the_encoder_learns_states_with_their_tactics_but_not_of_held_out_theorems(tmp_path):
    path = str(write_rows(tmp_path / "t.parquet", searches(10)))
    held = demo_head.held_out([path])
    texts = train_model.training_texts([path], held)
    assert len(held) == 4
    assert texts
    assert not any(text.startswith(f"{theorem} ") for text in texts for theorem in held)
    assert texts[0].endswith("\n:: tactic 1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_encoders_training_resumes(tmp_path, monkeypatch):
    """Stopped after a checkpoint it goes on from there, and done once it is not done again."""
    path = str(write_rows(tmp_path / "t.parquet", searches(10)))
    texts = train_model.training_texts([path])
    monkeypatch.setattr(train_model, "SAVE_STEPS", 2)
    seen = []

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, _, state, *__, **___):
            seen.append(state.global_step)
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_model.train(tmp_path / "model", texts, 4, callbacks=[Stop()])
    train_model.train(tmp_path / "model", texts, 4, callbacks=[Stop()])
    assert seen == [1, 2, 3, 3, 4], "resumed after step 2"
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    train_model.train(tmp_path / "model", texts, 4, callbacks=[Stop()])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert len(seen) == 5
