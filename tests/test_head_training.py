"""Training a head on a cache, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ebm_encode import EnergyHead, open_cache
from ebm_encode.errors import (
    ArgumentError,
    BadRowsError,
    IdentityMismatchError,
    InputError,
    TrainingError,
)
from ebm_encode.heads import losses
from ebm_encode.heads.model import Head, energies, folded
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.rows import MatrixRows, moments
from ebm_encode.heads.trainer import train_head
from matrix import first, pairs
from recorded_searches import embeddings, row, searches, write_rows

FEW = HeadOptions(epochs=8, patience=8, batch_states=64, architecture="linear", learning_rate=0.03)


def interrupt(cache, files, output, *, after):
    """Starts a training that is interrupted after some epochs."""

    def stop(_, epoch):
        if epoch["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(cache, files, output, FEW, on_epoch=stop)


@pytest.fixture
def material(tmp_path, write_cache):
    """Trajectories and a cache of their states."""
    rows = searches(30)
    states, made = embeddings(rows)
    return (
        open_cache(write_cache(tmp_path / "c.parquet", states, made)),
        [str(write_rows(tmp_path / "t.parquet", rows))],
    )


def test_the_head_learns_which_child_is_nearer_to_a_proof(material, tmp_path):
    cache, files = material
    report = train_head(cache, files, tmp_path / "h.safetensors", FEW)
    best = report.best["linear-0"]
    assert best["provable"] > 0.9 > report.chance["provable"] + 0.2
    assert best["energy_gap"] > 0, "proved states have the lower energy"
    root, spine, dead = (
        report.head.scores(cache.gather([state]))[0]
        for state in ("t0 root\n⊢ goal", "t0 spine 3\n⊢ goal", "t0 dead 12\n⊢ goal")
    )
    assert spine > root, "the score rises towards the proof"
    assert spine > dead


@pytest.mark.parametrize(
    ("architecture", "spectral_norm"), pairs(["linear", "mlp", "origin"], [False, True])
)
def test_the_file_is_the_head_that_was_trained(architecture, spectral_norm, tmp_path, material):
    cache, files = material
    options = HeadOptions(
        epochs=1,
        architecture=architecture,
        spectral_norm=spectral_norm,
        members=2,
        batch_states=256,
    )
    report = train_head(cache, files, tmp_path / "h.safetensors", options)
    assert report.head.members == 2
    assert report.head.dims[0] == 8
    assert report.head.dims[-1] == 1
    assert report.head.identity == cache.identity
    again = EnergyHead.open(tmp_path / "h.safetensors")
    rows = cache.gather(cache.states())
    assert (again.energies(rows) == report.head.energies(rows)).all()


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_folding_changes_no_energy(spectral_norm):
    """Against the module itself in float64, whose power iteration has converged."""
    torch.manual_seed(0)
    rows = torch.randn(50, 12) * 3 + 7
    mean, deviation = moments(MatrixRows(rows.numpy()), np.arange(50))
    head = Head(mean, deviation, (8, 4), spectral_norm=spectral_norm)
    for _ in range(500):  # each pass in training mode is one power iteration
        head(rows)
    head.eval()
    found = energies(folded(head), rows.double())
    with torch.no_grad():
        expected = head.double()(rows.double())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    if spectral_norm:
        for number, (weight, _) in enumerate(folded(head.float())[1:], 1):
            assert torch.linalg.matrix_norm(weight, 2) == pytest.approx(1, abs=1e-5), number


def test_auto_takes_the_architecture_that_ranks_validation_siblings_better(material, tmp_path):
    cache, files = material
    options = HeadOptions(epochs=2, batch_states=256)
    report = train_head(cache, files, tmp_path / "h.safetensors", options)
    better = max(("linear-0", "mlp-0"), key=lambda name: report.best[name]["rank"])
    assert better.startswith(report.architecture)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(material, tmp_path):
    cache, files = material
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = HeadOptions(epochs=2, seed=seed, architecture="mlp", batch_states=128)
        train_head(cache, files, tmp_path / f"{name}.safetensors", options)
        made[name] = (tmp_path / f"{name}.safetensors").read_bytes()
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]


_KILLED = """
    import os, signal, sys
    from ebm_encode import open_cache
    from ebm_encode.heads.options import HeadOptions
    from ebm_encode.heads.trainer import train_head
    cache, files, output, at = sys.argv[1:]
    def on_epoch(name, epoch):
        if at == f"{name} {epoch['epoch']}":
            os.kill(os.getpid(), signal.SIGKILL)
    options = HeadOptions(epochs=4, patience=4, batch_states=128, members=2)
    train_head(open_cache(cache), [files], output, options, on_epoch=on_epoch)
"""


@pytest.mark.parametrize("moments", first([["mlp-0 1"], ["linear-0 3", "mlp-0 1", "mlp-0 4"]]))
def test_killed_and_resumed_the_head_is_the_same(material, tmp_path, moments):
    """Killed with kill -9 within each of several trainings; the result is bit for bit the same."""
    cache, (file,) = material

    def run(output, at):
        command = [sys.executable, "-c", textwrap.dedent(_KILLED), cache.path, file, output, at]
        return subprocess.run([*map(str, command)], check=False, env=os.environ | {
            "OMP_NUM_THREADS": "1"
        }).returncode  # fmt: skip

    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert run(whole, "never") == 0
    for at in moments:
        assert run(killed, at) == -signal.SIGKILL
        assert not killed.exists(), "a head is there whole or not at all"
    assert run(killed, "never") == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "killed.safetensors.training").exists()


def test_a_checkpoint_of_other_options_is_not_resumed(material, tmp_path):
    cache, files = material
    output = tmp_path / "h.safetensors"

    interrupt(cache, files, output, after=2)
    other = replace(FEW, learning_rate=0.01)
    resumed = train_head(cache, files, output, other)
    fresh = train_head(cache, files, tmp_path / "fresh.safetensors", other)
    assert resumed.best == fresh.best


def test_each_epoch_is_logged_and_drawn(material, tmp_path):
    cache, files = material
    log, figure = tmp_path / "log.jsonl", tmp_path / "curves.svg"
    train_head(cache, files, tmp_path / "h.safetensors", FEW, log_file=log, figure=figure)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [*range(1, 9)]
    assert {"loss", "energy_gap", "provable", "rank", "training"} <= {*lines[0]}
    assert "<svg" in figure.read_text()


@pytest.mark.parametrize(("loss", "labels"), pairs(["infonce", "margin"], ["graph", "file"]))
def test_the_origins_losses_learn_too(loss, labels, tmp_path, write_cache):
    rows = searches(30)
    for one in rows:
        near = "dead" not in one["state_pp"]
        one["label"] = "positive" if near else "negative"
        one["remaining_depth"] = 4 if "root" in one["state_pp"] else 0
        if "spine" in one["state_pp"]:
            one["remaining_depth"] = 4 - int(one["state_pp"].split()[2])
    states, made = embeddings(rows)
    cache = open_cache(write_cache(tmp_path / "c.parquet", states, made))
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    options = HeadOptions(
        loss=loss, labels=labels, epochs=8, architecture="linear", distance_weight=0.3,
        batch_states=64, learning_rate=0.03,
    )  # fmt: skip
    report = train_head(cache, files, tmp_path / "h.safetensors", options)
    assert report.best["linear-0"]["provable"] > report.chance["provable"] + 0.2
    assert report.best["linear-0"]["energy_gap"] > 0


def test_the_losses_are_their_formulas():
    energy = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([[0, 1, -1], [1, 2, 3]])
    targets = torch.tensor([[True, False, False], [False, True, True]])
    plain = []
    for children, wanted in (([0, 1], [0]), ([1, 2, 3], [2, 3])):
        top = sum(np.exp(-energy.detach().numpy()[n]) for n in wanted)
        plain.append(-np.log(top / sum(np.exp(-energy.detach().numpy()[n]) for n in children)))
    found = losses.sibling_loss(energy, groups, targets)
    assert found.item() == pytest.approx(np.mean(plain))
    found.backward()
    assert energy.grad[0] > 0 > energy.grad[1], "descent lowers the proved child's energy"
    near, far = torch.tensor([0]), torch.tensor([3])
    pairs = losses.pair_loss(energy, near, far)
    assert pairs.item() == pytest.approx(np.log1p(np.exp(1.0 - 3.0)))
    table = energy.detach().view(1, 4)
    temperature = torch.tensor(-2.3, dtype=torch.float64)
    scaled = -table.numpy()[0] / np.exp(-2.3)
    expected = -(scaled[0] - np.log(np.exp(scaled).sum()))
    assert float(losses.infonce_loss(table, temperature)) == pytest.approx(expected)
    # Hinges 1 + 1 - 2 = 0, 1 + 1 - 0.5 = 1.5 and 1 + 1 - 3 < 0: one pair is active.
    assert float(losses.margin_loss(table)) == pytest.approx(1.5)


@pytest.mark.parametrize("loss", [losses.sibling_loss, losses.pair_loss])
def test_a_batch_without_anything_to_compare_has_no_loss(loss):
    energy = torch.ones(3, requires_grad=True)
    empty = torch.empty(0, dtype=torch.int64)
    nothing = loss(energy, empty.view(0, 0) if loss is losses.sibling_loss else empty, empty)
    nothing.backward()
    assert nothing.item() == 0
    assert (energy.grad == 0).all()


def test_moments_are_those_of_the_rows_in_one_pass():
    rows = np.random.default_rng(0).standard_normal((20_000, 5)).astype(np.float32)
    rows = rows * 0.01 + 100
    rows[:, 4] = 3.0
    mean, deviation = moments(MatrixRows(rows), np.arange(len(rows)))
    assert np.allclose(mean, rows.astype(np.float64).mean(axis=0))
    assert np.allclose(deviation[:4], rows[:, :4].astype(np.float64).std(axis=0), rtol=1e-4)
    assert 0 < deviation[4] < deviation[0], "what never varies is not scaled up to noise"


def test_a_mapped_cache_is_never_copied_whole(material, tmp_path):
    cache, files = material
    mapped = open_cache(cache.path, mode="mapped")
    one = train_head(mapped, files, tmp_path / "a.safetensors", FEW)
    other = train_head(cache, files, tmp_path / "b.safetensors", FEW)
    rows = cache.gather(cache.states())
    assert (one.head.energies(rows) == other.head.energies(rows)).all()


def test_a_cache_of_an_unknown_encoder_is_refused(material, tmp_path):
    cache, files = material
    rows = cache.gather(cache.states())
    kind = pa.list_(pa.float32())
    table = pa.table({"state_pp": cache.states(), "embedding": pa.array([*rows], kind)})
    pq.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(IdentityMismatchError, match="does not say which encoder made it"):
        train_head(open_cache(tmp_path / "foreign.parquet"), files, tmp_path / "h.safetensors")


def test_states_that_the_cache_lacks_are_listed(material, tmp_path, write_cache):
    cache, files = material
    states = cache.states()[: len(cache) // 2]
    half = open_cache(write_cache(tmp_path / "half.parquet", states, cache.gather(states)))
    with pytest.raises(InputError, match=r"the cache lacks .* \(50.*%\).*: 't") as raised:
        train_head(half, files, tmp_path / "h.safetensors", FEW)
    assert "hint:" in str(raised.value)
    options = HeadOptions(epochs=1, architecture="linear", max_missing=0.6)
    report = train_head(half, files, tmp_path / "h.safetensors", options)
    assert report.counts["missing"] == len(report.missing) > 0


def test_zero_vectors_are_refused_before_training(material, tmp_path, run_cli):
    cache, (file,) = material
    table = pq.read_table(cache.path)
    rows = table["embedding"].to_pylist()
    for number in range(0, len(rows), 7):
        rows[number] = [0.0] * 8
    spoiled = table.set_column(1, table.schema.field(1), pa.array(rows, table.schema.field(1).type))
    pq.write_table(spoiled, tmp_path / "zeros.parquet")
    code, _, err = run_cli(
        "train-head", tmp_path / "zeros.parquet", "--trajectories", file, "--output",
        tmp_path / "h.safetensors",
    )  # fmt: skip
    assert code == 1
    assert "zero" in err
    with pytest.raises(BadRowsError):
        open_cache(tmp_path / "zeros.parquet")
    assert not (tmp_path / "h.safetensors").exists()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (searches(1), "at least 3 are needed"),
        (searches(4, solved=False), "no solved theorem"),
        (searches(4, nodes=0), "all labels are equal"),
        ([row("t", n, f"s{n}") for n in range(5)], "no step from one state to another"),
    ],
)
def test_too_little_data_is_refused(rows, reason, tmp_path, write_cache):
    states, made = embeddings(rows) if "dead" in str(rows) else ([], None)
    if made is None:
        states = [*dict.fromkeys(r["state_pp"] for r in rows if r["state_pp"])]
        made = np.random.default_rng(0).standard_normal((len(states), 16)).astype(np.float32)
    cache = open_cache(write_cache(tmp_path / "c.parquet", states, made))
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    with pytest.raises(InputError, match=reason):
        train_head(cache, files, tmp_path / "h.safetensors", FEW)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"dropout": 1.0}, {"validation": 0.6, "test": 0.6}, {"architecture": "deep"},
     {"loss": "mse"}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"seed": -1}],
)  # fmt: skip
def test_options_without_meaning_are_refused(wrong):
    with pytest.raises(ArgumentError, match=f"`{next(iter(wrong))}`"):
        HeadOptions(**wrong)


def test_the_command_prints_what_it_did(material, tmp_path, run_cli):
    cache, (file,) = material
    output = tmp_path / "h.safetensors"
    code, out, err = run_cli(
        "train-head", cache.path, "--trajectories", file, "--output", output, "--epochs", 2
    )
    assert code == 0, err
    assert "validation rank-1" in out
    assert "chance" in out
    assert "energy, lower is better" in out
    assert "linear-0 epoch 1: loss" in err
    assert (tmp_path / "h.safetensors.svg").exists()
    assert (tmp_path / "h.safetensors.log.jsonl").exists()


@pytest.mark.parametrize("output", ["h.bin", "no/folder/h.safetensors"])
def test_an_output_that_cannot_be_written_is_refused_at_once(output, material, tmp_path, run_cli):
    cache, (file,) = material
    arguments = ("train-head", cache.path, "--trajectories", file, "--output", tmp_path / output)
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert "--output" in err


def test_a_checkpoint_of_other_embeddings_is_not_resumed(material, tmp_path, write_cache):
    """A cache that changed under the same identity, between the interruption and the rerun."""
    cache, files = material
    output = tmp_path / "h.safetensors"

    interrupt(cache, files, output, after=4)
    rows = cache.gather(cache.states())[:, ::-1].copy()
    other = open_cache(write_cache(tmp_path / "other.parquet", cache.states(), rows))
    resumed = train_head(other, files, output, FEW)
    fresh = train_head(other, files, tmp_path / "fresh.safetensors", FEW)
    assert resumed.best == fresh.best


def test_a_positive_without_a_distance_is_no_wrong_answer(tmp_path, write_cache):
    """Files may call a state positive and not say how far it is from the end."""
    rows = searches(30)
    for one in rows:
        one["label"] = "negative" if "dead" in one["state_pp"] else "positive"
    states, made = embeddings(rows)
    cache = open_cache(write_cache(tmp_path / "c.parquet", states, made))
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    report = train_head(cache, files, tmp_path / "h.safetensors", replace(FEW, labels="file"))
    assert report.best["linear-0"]["provable"] > 0.9


def test_training_that_diverges_is_an_error_and_leaves_the_former_head(material, tmp_path):
    cache, files = material
    output = tmp_path / "h.safetensors"
    train_head(cache, files, output, FEW)
    before = output.read_bytes()
    wild = replace(FEW, architecture="mlp", learning_rate=1e12, clip=1e12)
    with pytest.raises(TrainingError, match="diverged"):
        train_head(cache, files, output, wild)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "places",
    [{"output": "."}, {"figure": "no/x.svg"}, {"figure": "x.gif"}, {"log_file": "no/x.jsonl"}],
)
def test_places_that_cannot_be_written_are_refused_before_training(places, material, tmp_path):
    cache, files = material
    places = {"output": "h.safetensors"} | places
    places = {name: tmp_path / place for name, place in places.items()}
    epochs = []
    with pytest.raises(ArgumentError, match="expected"):
        train_head(cache, files, options=FEW, on_epoch=lambda *e: epochs.append(e), **places)
    assert not epochs


def test_an_unknown_device_is_refused(material, tmp_path):
    cache, files = material
    with pytest.raises(ArgumentError, match="`device` abacus"):
        train_head(cache, files, tmp_path / "h.safetensors", FEW, device="abacus")


def test_a_head_among_its_trajectories_can_be_trained_again(material, tmp_path, run_cli):
    cache, (file,) = material
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "t.parquet").write_bytes(Path(file).read_bytes())
    arguments = ("train-head", cache.path, "--trajectories", runs, "--output",
                 runs / "h.safetensors", "--epochs", 1)  # fmt: skip
    for _ in range(2):
        code, _, err = run_cli(*arguments)
        assert code == 0, err
