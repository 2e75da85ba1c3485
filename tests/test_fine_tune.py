"""The steps of `make demo-iteration` that are the user's own: fine-tuning and export."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

import demo_head
from recorded_searches import searches, write_rows
from support import ROOT

STEPS, SAVE_STEPS = 24, 8
OPTIONS = ("--steps", STEPS, "--save-steps", SAVE_STEPS, "--batch", 64, "--rate", 1e-2)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def base(make_model):
    return make_model("llama")


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("searches") / "t.parquet", searches(10))


@pytest.fixture(scope="module")
def adapter(base, trajectories, tmp_path_factory):
    """An adapter whose training nothing interrupted."""
    output = tmp_path_factory.mktemp("uninterrupted") / "adapter"
    assert tune(base, trajectories, output) == 0
    return output


@pytest.fixture(scope="module")
def merged(base, adapter, tmp_path_factory):
    output = tmp_path_factory.mktemp("export") / "merged"
    assert merge(base, adapter, output) == 0
    return output


def tune_options(base, trajectories, output, *more):
    given = ("--model", base, "--trajectories", trajectories, "--output", output)
    return [*map(str, (*given, *OPTIONS, "--device", "cpu", *more))]


def tune(*arguments):
    import fine_tune  # noqa: PLC0415

    return fine_tune.main(tune_options(*arguments))


def merge(base, adapter, output, *more):
    import export  # noqa: PLC0415

    given = ("--model", base, "--adapter", adapter, "--output", output, *more)
    return export.main([*map(str, given)])


def record_of(adapter):
    return json.loads((adapter / "fine_tune.json").read_text())


def spine_pairs(trajectories):
    """The pairs of the made-up proofs: each state of a spine with the tactic of the next row."""
    held = demo_head.held_out([str(trajectories)])
    for rows in map(list, np.array_split(np.array(searches(10), dtype=object), 10)):
        if rows[0]["theorem_name"] not in held:
            for state, step in pairwise(rows[:7]):
                yield state["state_pp"], step["tactic_applied"]


def plain_loss(model, tokenizer, pairs, *, whole=False):
    """Mean loss of the tactics' tokens, or of all tokens, one pair at a time."""
    import torch  # noqa: PLC0415

    total, count = 0.0, 0
    for state, tactic in pairs:
        prompt = tokenizer(f"{state}\n::")["input_ids"]
        ids = [*prompt, *tokenizer(f" {tactic}", add_special_tokens=False)["input_ids"], 1]
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1 if whole else len(prompt), len(ids)):
            total -= float(log_probs[place - 1, ids[place]])
            count += 1
    return total / count


def test_the_loss_is_that_of_the_tactics_and_falls(base, trajectories, adapter):
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert tokenizer.eos_token_id == 1
    pairs = [*spine_pairs(trajectories)]
    record = record_of(adapter)
    assert record["pairs"] == len(pairs) == 36
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = plain_loss(model, tokenizer, pairs)
    assert abs(before - plain_loss(model, tokenizer, pairs, whole=True)) > 0.01
    assert record["loss"]["train"]["before"] == pytest.approx(before, abs=1e-4)
    # All pairs are one batch, and the adapter changes nothing before the first step.
    assert record["first_step"] == pytest.approx(before, abs=1e-4)
    tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
    after = plain_loss(tuned, tokenizer, pairs)
    assert record["loss"]["train"]["after"] == pytest.approx(after, abs=1e-4)
    assert after < before / 2


def test_an_export_has_the_hidden_states_of_the_merged_model(base, adapter, merged, states):
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    def hidden(model, state):
        ids = tokenizer(state, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model(ids, output_hidden_states=True).hidden_states[-1].numpy()

    load = transformers.AutoModelForCausalLM.from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    own = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32), adapter)
    own, plain, found = own.merge_and_unload(), load(base), load(merged)
    assert found.dtype == torch.float32
    for state in states[:20]:
        expected = hidden(own, state)
        np.testing.assert_allclose(hidden(found, state), expected, atol=1e-5)
        assert np.abs(hidden(plain, state) - expected).max() > 0.01


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_changed_tensor_of_an_export_is_found(base, adapter, merged, tmp_path, capsys, name):
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    assert merge(base, adapter, merged, "--check") == 0
    copy = shutil.copytree(merged, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors[name][3, 5] += 0.01
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert merge(base, adapter, copy, "--check") == 1
    assert name in capsys.readouterr().err


def test_an_export_in_shards_is_the_same(base, adapter, merged, tmp_path):
    import transformers  # noqa: PLC0415

    output = tmp_path / "merged"
    assert merge(base, adapter, output, "--max-shard-size", "200KB") == 0
    assert len([*output.glob("model-*.safetensors")]) > 1
    load = transformers.AutoModelForCausalLM.from_pretrained
    found, expected = load(output).state_dict(), load(merged).state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def test_only_an_export_that_passes_gets_its_name(base, adapter, tmp_path, capsys):
    assert merge(base, adapter, tmp_path / "merged", "--bound", 0) == 1
    assert "(allowed 0e+00)" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_killed_training_resumes_and_ends_with_the_same_adapter(
    base, trajectories, adapter, tmp_path, capsys
):
    import torch  # noqa: PLC0415

    output, script = tmp_path / "adapter", ROOT / "samples" / "iteration" / "fine_tune.py"
    training = subprocess.Popen(
        [sys.executable, script, *tune_options(base, trajectories, output)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        until(lambda: [*tmp_path.glob(f"**/checkpoint-{SAVE_STEPS}/complete.json")], training)
    finally:
        training.send_signal(signal.SIGKILL)
        training.wait()
    assert not output.exists()
    # What a kill in the middle of a checkpoint leaves: it has a name, and lacks most of its bytes.
    (whole,) = tmp_path.glob(f"**/checkpoint-{SAVE_STEPS}")
    torn = shutil.copytree(whole, whole.with_name(f"checkpoint-{STEPS - 1}"))
    (torn / "complete.json").unlink()
    (torn / "optimizer.pt").write_bytes(b"PK")
    # And what one leaves that comes while the adapter is written.
    (tmp_path / "adapter.unfinished").mkdir()
    (tmp_path / "adapter.unfinished" / "half").touch()
    assert tune(base, trajectories, output) == 0
    assert f"resumes from {whole.parent}" in capsys.readouterr().out
    for file in ("adapter_model.safetensors", "adapter_config.json", "fine_tune.json"):
        assert (output / file).read_bytes() == (adapter / file).read_bytes()
    assert {file.name for file in output.iterdir()} == {file.name for file in adapter.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def until(happened, process, seconds=120):
    """Waits for something that a process does."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the process ended first"
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_checkpoint_with_other_bytes_is_not_resumed_from(tmp_path):
    from types import SimpleNamespace  # noqa: PLC0415

    import checkpoints  # noqa: PLC0415

    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"state %d" % step)
        arguments = SimpleNamespace(output_dir=tmp_path)
        checkpoints.Completed().on_save(arguments, SimpleNamespace(global_step=step), None)
    assert checkpoints.newest(tmp_path).name == "checkpoint-2"
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"state 3")
    assert checkpoints.newest(tmp_path).name == "checkpoint-1"
    assert not (tmp_path / "checkpoint-2").exists()


def test_the_same_adapter_is_not_made_twice(base, trajectories, adapter, tmp_path, capsys):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    before = (copy / "adapter_model.safetensors").stat()
    assert tune(base, trajectories, copy) == 0
    assert "is there" in capsys.readouterr().out
    assert (copy / "adapter_model.safetensors").stat() == before
    assert tune(base, trajectories, copy, "--steps", 2) == 0
    assert record_of(copy)["made_of"]["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_is_missing_is_said(base, trajectories, tmp_path, capsys):
    assert tune(tmp_path / "none", trajectories, tmp_path / "adapter") == 2
    assert merge(base, tmp_path / "none", tmp_path / "merged") == 2
    found = capsys.readouterr().err.splitlines()
    assert found == [
        f"error: --model {tmp_path / 'none'}: no such folder",
        f"error: --adapter {tmp_path / 'none'}: no such folder",
    ]


def test_a_quantised_base_is_refused_by_both(base, trajectories, adapter, tmp_path, capsys):
    """An adapter for rounded weights is not one for those that they were."""
    from quantised_models import stated  # noqa: PLC0415  (torch)

    rounded = stated(base, tmp_path / "model", {"quant_method": "fp8"})
    assert tune(rounded, trajectories, tmp_path / "adapter") == 2
    assert merge(rounded, adapter, tmp_path / "merged") == 2
    said = capsys.readouterr().err
    assert f"--model {rounded} is quantised (fp8), and adapters are trained in float32" in said
    assert f"--model {rounded} is quantised (fp8), and adapters are merged in float32" in said
    assert not (tmp_path / "merged").exists()
