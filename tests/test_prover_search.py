"""`ebm-prover search` in a replay: equal to the evaluation's, crash-safe, honest about faults."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from ebm_encode import EnergyHead, open_cache
from ebm_encode.heads.corpus import read_corpus
from ebm_encode.heads.graph import merge
from ebm_encode.heads.labels import NO_DISTANCE, STATUS_NAMES, label_graph
from ebm_encode.heads.mixing import Mixing
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.records import read_trajectories
from ebm_encode.heads.replay import Ranking, replay
from ebm_encode.heads.rules import shortest_text
from ebm_encode.heads.trainer import train_head
from matrix import first
from recorded_searches import embeddings, searches, write_rows
from support import PROVER, ROOT, write_plain_cache

LEAN = ROOT / "searches" / "lean_core.parquet"
FEW = HeadOptions(epochs=6, batch_states=64, architecture="linear", learning_rate=0.03)
UNLIMITED = ("--max-expansions", "1000000000")


def prover(*arguments, **options):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}
    command = [str(part) for part in (PROVER, *arguments)]
    defaults = {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(command, check=False, **(defaults | options))


def search(*arguments):
    """Runs a search that is to succeed, and returns its report."""
    done = prover("search", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needed(report):
    """Expansions to the proof by theorem; `None` where there is none."""
    return {one["theorem"]: one.get("proof_expansions") for one in report["theorems"]}


@pytest.fixture(scope="module")
def lean():
    return read_corpus([str(LEAN)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A head, its cache, and the trajectories it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    rows = searches(30)
    states, made = embeddings(rows)
    cache = open_cache(write_plain_cache(folder / "c.parquet", states, made))
    trajectories = write_rows(folder / "t.parquet", rows)
    train_head(cache, [str(trajectories)], folder / "h.safetensors", FEW)
    return folder / "h.safetensors", folder / "c.parquet", trajectories


def replayed(corpus, ranking_of):
    found = {}
    for number, graph in enumerate(corpus.graphs):
        done = replay(graph, ranking_of(number, graph))
        found[graph.theorem] = None if done is None else done.expansions
    return found


def oracle(corpus):
    def ranking(number, _graph):
        distance = corpus.labels[number].distance.astype(np.float64)
        return Ranking(np.where(distance == NO_DISTANCE, -1e9, -distance))

    return ranking


RANKINGS = {
    "policy": lambda _: lambda _number, _graph: Ranking(None, 0.0, 0.5),
    "breadth-first": lambda _: lambda _number, _graph: Ranking(),
    "shortest": lambda _: lambda _number, graph: Ranking(shortest_text(graph.states)),
    "oracle": oracle,
}


@pytest.mark.parametrize("ranking", [*RANKINGS])
def test_a_replay_of_real_searches_needs_the_evaluations_expansions(lean, ranking):
    report = search("--trajectories", LEAN, "--ranking", ranking, *UNLIMITED)
    expected = replayed(lean, RANKINGS[ranking](lean))
    assert needed(report) == expected
    assert report["solved"] == sum(count is not None for count in expected.values())
    for budget in (8, 16, 32, 64):
        within = sum(count is not None and count <= budget for count in expected.values())
        assert report["solved_within"][str(budget)] == within


@pytest.mark.parametrize("weight", [0.25, 0.9, None])
def test_the_mixture_of_a_head_file_is_the_evaluations(trained, weight):
    path, cache, trajectories = trained
    options = [] if weight is None else ["--weight", weight]
    arguments = ("--trajectories", trajectories, "--head", path, "--cache", cache, *UNLIMITED)
    report = search(*arguments, *options)
    corpus, head, rows = read_corpus([str(trajectories)]), EnergyHead.open(path), open_cache(cache)
    policy = head.mixing["policy"]
    scale = policy["mean"], policy["deviation"]
    chosen = head.mixing["weight"] if weight is None else weight
    mixing = Mixing(chosen, policy["depth_exponent"], scale)

    def ranking(_number, graph):
        scores = head.scores(rows.gather(graph.states))
        return mixing.ranking(scores.astype(np.float64), head.score_scale)

    assert needed(report) == replayed(corpus, ranking)
    assert report["unscored"] == 0
    assert report["stages"]["scorer"]["calls"] > 0


def test_a_head_beats_its_mirror_image(trained):
    path, cache, trajectories = trained
    arguments = ("--trajectories", trajectories, "--cache", cache, *UNLIMITED)
    ordered = search(*arguments, "--head", path, "--ranking", "head")
    at_random = search("--trajectories", trajectories, "--ranking", "random", *UNLIMITED)
    assert ordered["mean_expansions_to_proof"] < 0.7 * at_random["mean_expansions_to_proof"]


def test_threads_change_nothing_but_the_time(tmp_path):
    files = []
    for threads in (1, 7):
        files.append(tmp_path / f"{threads}.parquet")
        search("--trajectories", LEAN, "--threads", threads, "--output", files[-1])
    one, other = (pl.read_parquet(file).drop("timestamp_ms") for file in files)
    assert one.equals(other, null_equal=True)


def test_the_written_trees_have_the_labels_of_the_package(tmp_path):
    output = tmp_path / "t.parquet"
    search("--trajectories", LEAN, "--max-expansions", "60", "--output", output)
    graphs, counts = merge(read_trajectories([str(output)]))
    assert (counts.without_parent, counts.ambiguous, counts.loops, counts.empty) == (0, 0, 0, 0)
    words = {"proved": "positive", "exhausted": "negative", "unknown": "unknown"}
    solved = 0
    for graph in graphs:
        labels = label_graph(graph)
        solved += labels.solved
        for number, said in enumerate(graph.file_labels):
            assert said.label == words[STATUS_NAMES[labels.status[number]]]
            known = labels.distance[number]
            assert said.remaining == (-1 if known == NO_DISTANCE else known)
    assert solved > 0
    frame = pl.read_parquet(output)
    assert frame.filter(pl.col("is_proof_complete"))["state_pp"].unique().to_list() == [""]
    assert frame["ebm_score"].is_nan().all()


def test_scores_are_recorded_with_their_sign(trained, tmp_path):
    path, cache, trajectories = trained
    output = tmp_path / "t.parquet"
    search("--trajectories", trajectories, "--head", path, "--cache", cache, "--output", output)
    frame = pl.read_parquet(output).filter(pl.col("ebm_score").is_not_nan())
    rows = open_cache(cache).gather(frame["state_pp"].to_list())
    expected = EnergyHead.open(path).scores(rows)
    assert len(frame) > 50
    np.testing.assert_allclose(frame["ebm_score"].to_numpy(), expected, rtol=1e-5, atol=1e-5)


def rows_of(path):
    return pl.read_parquet(path).drop("timestamp_ms").fill_nan(None).rows()


def wait_for(condition, process):
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing happened for 30 seconds")


@pytest.fixture
def slow(tmp_path):
    """A search that takes long: theorems many times over, and its arguments."""
    frame = pl.read_parquet(LEAN)
    copies = [frame.with_columns(pl.col("theorem_name") + f".{n}") for n in range(12)]
    path = tmp_path / "many.parquet"
    pl.concat(copies).write_parquet(path)
    return ("--trajectories", path, "--record-after-proof", "1000000", "--threads", "2")


@pytest.mark.parametrize("ending", first([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], 2))
def test_a_search_that_is_stopped_and_resumed_ends_as_if_it_was_not(slow, tmp_path, ending):
    whole, output = tmp_path / "whole.parquet", tmp_path / "output.parquet"
    search(*slow, "--output", whole)
    command = [str(part) for part in (PROVER, "search", *slow, "--output", output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    partial = tmp_path / "output.parquet.partial"
    if ending == signal.SIGKILL:  # what was not flushed is lost with the process
        wait_for(lambda: any(partial.glob("searches-*.parquet")), process)
    else:
        wait_for((partial / "lock").exists, process)
        time.sleep(0.2)  # some are finished by then, and most are not
    process.send_signal(ending)
    _, errors = process.communicate(timeout=60)
    if ending == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert not output.exists()
    else:
        assert process.returncode == 128 + ending
        assert b"--resume" in errors
        saved = pl.read_parquet(output)["theorem_name"].n_unique()
        assert 0 < saved < pl.read_parquet(whole)["theorem_name"].n_unique()
    refused = prover("search", *slow, "--output", output)
    assert refused.returncode == 2
    assert "resume" in refused.stderr
    report = search(*slow, "--output", output, "--resume")
    assert report["resumed"] > 0
    assert rows_of(output) == rows_of(whole)
    assert not partial.exists()


def test_two_searches_on_one_output(slow, tmp_path):
    output = tmp_path / "output.parquet"
    command = [str(part) for part in (PROVER, "search", *slow, "--output", output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for((tmp_path / "output.parquet.partial" / "lock").exists, process)
    second = prover("search", *slow, "--output", output, "--resume")
    assert second.returncode == 2
    assert "another process" in second.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_full_disk_ends_the_search_and_loses_nothing(slow, tmp_path):
    output = tmp_path / "output.parquet"
    whole = tmp_path / "whole.parquet"
    search(*slow, "--output", whole)

    def little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    full = prover("search", *slow, "--output", output, preexec_fn=little_room)
    assert full.returncode == 2
    assert "output.parquet" in full.stderr
    search(*slow, "--output", output, "--resume")
    assert rows_of(output) == rows_of(whole)


def test_states_without_embeddings_are_counted_and_the_exit_code_says_so(trained, tmp_path):
    path, _, trajectories = trained
    rows = searches(30)
    states, made = embeddings(rows)
    some = write_plain_cache(
        tmp_path / "some.parquet", states[: len(states) // 2], made[: len(states) // 2]
    )
    arguments = ("--trajectories", trajectories, "--head", path, "--cache", some, *UNLIMITED)
    done = prover("search", *arguments, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["unscored"] > 0
    assert report["solved"] == 30, "a state without a score is still searched"
    assert "is not in the cache" in done.stderr


def test_a_cache_of_another_encoder_is_refused(trained, tmp_path):
    path, _, trajectories = trained
    states, made = embeddings(searches(30))
    other = write_plain_cache(tmp_path / "other.parquet", states, made, dtype="bfloat16")
    done = prover("search", "--trajectories", trajectories, "--head", path, "--cache", other)
    assert done.returncode == 2
    assert "dtype" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--theorems"),
        (("--trajectories", "nothing.parquet"), "nothing.parquet"),
        (("--trajectories", LEAN, "--ranking", "head"), "--head"),
        (("--trajectories", LEAN, "--ranking", "mixture"), "--head"),
        (("--trajectories", LEAN, "--weight", "0.5"), "--weight"),
        (("--trajectories", LEAN, "--exploration", "-1"), "--exploration"),
        (("--trajectories", LEAN, "--timeout", "0"), "--timeout"),
        (("--trajectories", LEAN, "--cache", LEAN), "--head"),
        (("--trajectories", LEAN, "--resume"), "--output"),
        (("--trajectories", LEAN, "--output", "s3://bucket/t.parquet"), "this machine"),
        (("--trajectories", LEAN, "--output", "."), "folder"),
        (("--trajectories", LEAN, "--head", LEAN), "lean_core.parquet"),
        (("--theorems", LEAN), "UTF-8"),
    ],
)
def test_bad_input_is_refused_with_its_option(arguments, message):
    done = prover("search", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert not done.stdout


def test_settings_that_change_results_are_not_mixed_in_one_output(tmp_path):
    output = tmp_path / "t.parquet"
    arguments = ("--trajectories", LEAN, "--output", output)
    search(*arguments, "--first", "3")
    done = prover("search", *arguments, "--resume", "--ranking", "shortest")
    assert done.returncode == 2
    assert "scorer was null" in done.stderr
    report = search(*arguments, "--first", "5", "--resume")
    assert (report["resumed"], report["attempted"]) == (3, 5)
    search(*arguments, "--first", "2", "--overwrite", "--ranking", "shortest")
    assert pl.read_parquet(output)["theorem_name"].n_unique() == 2


def test_compare_lists_gained_and_lost_theorems(tmp_path):
    files = []
    for ranking in ("breadth-first", "oracle"):
        files.append(tmp_path / f"{ranking}.parquet")
        limits = ("--max-expansions", "10", "--output", files[-1])
        search("--trajectories", LEAN, "--ranking", ranking, *limits)
    done = prover("compare", *files, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    frames = [pl.read_parquet(file) for file in files]
    solved = [set(f.filter(pl.col("is_proof_complete"))["theorem_name"]) for f in frames]
    assert set(found["gained"]) == solved[1] - solved[0]
    assert found["gained"]
    assert set(found["lost"]) == solved[0] - solved[1]
    text = prover("compare", *files).stdout
    assert f"gained: {len(found['gained'])}" in text
    assert "fewer for these" in text
    with_recording = prover("compare", LEAN, files[0])
    assert with_recording.returncode == 0, with_recording.stderr


def test_what_is_printed_adds_up(trained):
    path, cache, trajectories = trained
    done = prover("search", "--trajectories", trajectories, "--head", path, "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert "solved      30 of 30 (100.0 %)" in done.stdout
    for stage in ("policy", "environment", "verification", "scorer", "encoder", "search"):
        assert f"\n{stage} " in done.stdout
