"""What an evaluation says of a head: the sign, who is compared, what counts, and its keys."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file

from ebm_encode import EnergyHead, open_cache
from ebm_encode.cli import main
from ebm_encode.errors import IdentityMismatchError, InputError
from ebm_encode.heads.evaluation import EvaluationOptions, evaluate_head
from ebm_encode.heads.figures import draw_evaluation
from ebm_encode.heads.head_file import write_head
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.trainer import train_head
from matrix import first
from recorded_searches import embeddings, row, searches, write_rows
from support import write_plain_cache

FEW = HeadOptions(epochs=6, batch_states=64, architecture="linear", learning_rate=0.03)
EASY = EvaluationOptions(comparisons=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained head, its cache and its trajectories."""
    folder = tmp_path_factory.mktemp("trained")
    rows = searches(40)
    states, made = embeddings(rows)
    cache = open_cache(write_plain_cache(folder / "c.parquet", states, made))
    files = [str(write_rows(folder / "t.parquet", rows))]
    head = train_head(cache, files, folder / "h.safetensors", FEW).head
    return head, cache, files


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    head, cache, files = trained
    work = tmp_path_factory.mktemp("work")
    return evaluate_head(head, cache, files, EvaluationOptions(seeds=2, work=str(work)))


def test_the_report_has_the_keys_that_are_promised(report):
    rankers = {
        "chance", "policy", "shortest_text", "fewest_goals", "token_counts", "linear", "zeroed",
        "head", "mixture", "oracle",
    }  # fmt: skip
    assert rankers <= {*report["siblings"]["provable"]}
    for found in report["siblings"]["provable"].values():
        for metric in ("rank1", "mrr", "pairwise"):
            low, high = found[f"{metric}_interval"]
            assert low <= found[metric] <= high
        assert {*found["rank1_by_depth"]} == {*found["rank1_by_depth_interval"]}
    for name in rankers:
        found = report["replay"][name]
        for key in ("mean_expansions", "within_8", "within_16", "within_32", "within_64"):
            low, high = found[f"{key}_interval"]
            assert low <= found[key] <= high
    json.dumps(report, allow_nan=False)


def test_only_the_test_theorems_of_training_files_count(report, trained):
    head, _, _ = trained
    split = head.metadata["training"]["split"]
    assert report["counts"]["theorems"] == len(split["test"]) == 6
    assert not {*split["test"]} & ({*split["train"]} | {*split["validation"]})


def test_chance_and_oracle_are_the_ends(report):
    siblings, replayed = report["siblings"]["provable"], report["replay"]
    assert siblings["oracle"]["rank1"] == 1
    assert replayed["oracle"]["mean_expansions"] == 6, "the proofs have six steps"
    assert siblings["chance"]["rank1"] < siblings["head"]["rank1"] <= 1
    for name, found in replayed.items():
        assert found["mean_expansions"] >= replayed["oracle"]["mean_expansions"], name


def test_the_head_is_better_than_what_needs_no_head(report):
    by_pair = {(d["metric"], d["of"], d["minus"]): d for d in report["differences"]}
    for rule in ("chance", "policy", "shortest_text", "fewest_goals"):
        low, _ = by_pair["siblings.provable.rank1", "head", rule]["interval"]
        assert low > 0, rule
    _, high = by_pair["replay.mean_expansions", "mixture", "breadth_first"]["interval"]
    assert high < 0, "fewer expansions"


def turned(head, path):
    """The same head with every energy's sign turned."""
    tensors = load_file(head.path)
    last = len(head.dims) - 2
    layers = [
        [
            tuple(
                tensors[f"member.{m}.layer.{n}.{part}"] * (-1 if n == last else 1)
                for part in ("weight", "bias")
            )
            for n in range(last + 1)
        ]
        for m in range(head.members)
    ]
    details = {k: head.metadata[k] for k in ("mixing", "training", "data", "versions")}
    mean, deviation = head.score_scale
    return write_head(path, layers, head.identity, (-mean, deviation), details)


def test_a_head_whose_sign_is_turned_is_worse_than_chance(trained, tmp_path):
    head, cache, files = trained
    wrong = turned(head, tmp_path / "turned.safetensors")
    right, other = (evaluate_head(h, cache, files, EASY) for h in (head, wrong))
    for report, better in ((right, True), (other, False)):
        siblings, trees = report["siblings"]["provable"], report["trees"]["head"]
        assert (siblings["head"]["rank1"] > siblings["chance"]["rank1"]) is better
        assert (trees["auc"] > 0.5) is better
        assert (trees["energy_gap"] > 0) is better
        assert (trees["distance_correlation"] > 0) is better
        replayed = report["replay"]
        assert (
            replayed["head"]["mean_expansions"] < replayed["chance"]["mean_expansions"]
        ) is better


def test_other_files_are_evaluated_whole_without_what_stands_in_train(trained, tmp_path):
    """Theorems of a new file count even if a training theorem has their name."""
    head, cache, _ = trained
    fresh = searches(8, seed=9)
    for one in fresh:
        one["state_pp"] = one["state_pp"] and one["state_pp"].replace("t", "other", 1)
    known = searches(40)[:30]  # t0 stands in the training file
    rows = fresh + [one | {"theorem_name": "copied"} for one in known]
    states, made = embeddings(fresh, seed=5)
    more = [*dict.fromkeys(one["state_pp"] for one in known if one["state_pp"])]
    made = np.concatenate([made, cache.gather(more)])
    held = open_cache(write_plain_cache(tmp_path / "c.parquet", states + more, made))
    path = write_rows(tmp_path / "held.parquet", rows)
    report = evaluate_head(head, held, [str(path)], EASY)
    copied = "t0" not in head.metadata["training"]["split"]["test"]
    assert report["counts"]["theorems"] == 8 + (not copied)
    assert report["counts"]["theorems_in_train"] == copied


def test_evaluation_on_training_theorems_alone_is_refused(trained, tmp_path):
    head, cache, _ = trained
    train = {*head.metadata["training"]["split"]["train"]}
    rows = [one for one in searches(40) if one["theorem_name"] in train]
    path = write_rows(tmp_path / "train.parquet", rows)
    with pytest.raises(InputError, match="no theorem to evaluate on"):
        evaluate_head(head, cache, [str(path)], EASY)


def test_a_cache_of_a_different_encoder_is_refused(trained, tmp_path, write_cache):
    head, cache, files = trained
    rows = cache.gather(cache.states())
    path = write_cache(tmp_path / "other.parquet", cache.states(), rows, dtype="bfloat16")
    with pytest.raises(IdentityMismatchError, match="dtype"):
        evaluate_head(head, open_cache(path), files, EASY)


def test_states_that_the_cache_lacks_are_refused(trained, tmp_path, write_cache):
    head, cache, files = trained
    states = cache.states()[: len(cache) // 2]
    path = write_cache(tmp_path / "half.parquet", states, cache.gather(states))
    with pytest.raises(InputError, match="lacks"):
        evaluate_head(head, open_cache(path), files, EASY)


def test_training_files_that_are_gone_are_told(trained, tmp_path):
    head, cache, files = trained
    details = {k: head.metadata[k] for k in ("mixing", "training", "versions")}
    data = json.loads(json.dumps(head.metadata["data"]))
    data["trajectories"][0]["name"] = str(tmp_path / "gone.parquet")
    data["trajectories"][0]["digest"] = "another"
    tensors = load_file(head.path)
    layers = [[(tensors["member.0.layer.0.weight"], tensors["member.0.layer.0.bias"])]]
    moved = write_head(
        tmp_path / "moved.safetensors", layers, head.identity, head.score_scale,
        details | {"data": data},
    )  # fmt: skip
    report = evaluate_head(moved, cache, files)
    assert {"linear", "zeroed", "token_counts", "random_encoder"} <= {*report["unavailable"]}
    assert "gone.parquet" in report["unavailable"]["linear"]
    assert not report["counts"]["train_states_known"]


def test_comparison_heads_are_trained_once(trained, tmp_path):
    head, cache, files = trained
    told = []
    options = EvaluationOptions(seeds=1, work=str(tmp_path / "work"))
    first = evaluate_head(head, cache, files, options, on_epoch=lambda n, e: told.append((n, e)))
    kept = sorted((tmp_path / "work").rglob("*.pt"))
    times = [file.stat().st_mtime_ns for file in kept]
    again = evaluate_head(head, cache, files, options)
    assert kept
    assert [file.stat().st_mtime_ns for file in kept] == times, "nothing was trained again"
    assert first == again
    assert {name.split("-")[0] for name, _ in told} == {"linear", "zeroed", "token_counts"}


def test_the_command_prints_tables_and_json(trained, tmp_path, run_cli):
    head, cache, files = trained
    arguments = (
        "evaluate-head", head.path, cache.path, "--trajectories", *files, "--seeds", 1, "--work",
        tmp_path / "work", "--figure", tmp_path / "e.svg",
    )  # fmt: skip
    code, out, err = run_cli(*arguments)
    assert code == 0, err
    for words in ("children of one parent, provable", "replayed search", "oracle", "differences"):
        assert words in out
    assert "random_encoder: not there" in out
    assert "<svg" in (tmp_path / "e.svg").read_text()
    code, out, _ = run_cli(*arguments, "--json")
    assert code == 0
    assert json.loads(out)["siblings"]["provable"]["head"]["rank1"] > 0


def test_a_figure_is_drawn_of_any_report(report, tmp_path):
    draw_evaluation(tmp_path / "a.png", report)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_head_of_other_software_needs_no_mixture(trained, tmp_path):
    head, cache, files = trained
    tensors = load_file(head.path)
    layers = [[(tensors["member.0.layer.0.weight"], tensors["member.0.layer.0.bias"])]]
    details = {k: head.metadata[k] for k in ("training", "data", "versions")}
    plain = write_head(
        tmp_path / "plain.safetensors", layers, head.identity, head.score_scale, details
    )
    assert EnergyHead.open(plain.path).mixing is None
    report = evaluate_head(plain, cache, files, EASY)
    assert report["replay"]["mixture"]["mean_expansions"] >= 6


def rewritten(head, path, details):
    """The same linear head with other metadata."""
    tensors = load_file(head.path)
    layers = [[(tensors["member.0.layer.0.weight"], tensors["member.0.layer.0.bias"])]]
    return write_head(path, layers, head.identity, head.score_scale, details)


def test_theorems_of_the_training_are_known_in_other_files_too(trained, tmp_path):
    """The file saved again has another digest; neither train nor validation theorems count."""
    head, cache, _ = trained
    again = str(write_rows(tmp_path / "again.parquet", [*searches(40), row("u", 0, "unknown")]))
    assert evaluate_head(head, cache, [again], EASY)["counts"]["theorems"] == 6
    details = {k: head.metadata[k] for k in ("mixing", "training", "versions")}
    moved = rewritten(head, tmp_path / "moved.safetensors", details)
    report = evaluate_head(moved, cache, [again], EASY)
    assert report["counts"]["theorems"] == 6, "also where the training files are gone"


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_files_makes_no_difference(order, trained, tmp_path):
    head, cache, files = trained
    fresh = [one for one in searches(40) if one["theorem_name"] in {"t0", "t1", "t2"}]
    more = str(write_rows(tmp_path / "more.parquet", fresh))
    report = evaluate_head(head, cache, [*files, more][::order], EASY)
    assert report["counts"]["theorems"] == 6


def test_chance_among_siblings_is_exact(trained):
    head, cache, files = trained
    reports = [evaluate_head(head, cache, files, replace(EASY, seed=seed)) for seed in (0, 1)]
    siblings = [report["siblings"]["provable"] for report in reports]
    ranks = {one["chance"]["rank1"] for one in siblings}
    assert ranks == {siblings[0]["breadth_first"]["rank1"]}


def test_without_log_probabilities_there_is_no_policy_to_compare_with(tmp_path):
    rows = [one | {"llm_log_prob": None} for one in searches(40)]
    states, made = embeddings(rows)
    cache = open_cache(write_plain_cache(tmp_path / "c.parquet", states, made))
    files = [str(write_rows(tmp_path / "t.parquet", rows))]
    head = train_head(cache, files, tmp_path / "h.safetensors", FEW).head
    assert head.mixing["weight"] == 1
    report = evaluate_head(head, cache, files, EASY)
    assert "not recorded" in report["unavailable"]["policy"]
    assert "policy" not in report["replay"]


@pytest.mark.parametrize("details", first([{}, {"training": {}}, {"training": {"options": {}}}]))
def test_a_head_that_does_not_say_how_it_was_trained_is_evaluated(details, trained, tmp_path):
    head, cache, files = trained
    report = evaluate_head(rewritten(head, tmp_path / "b.safetensors", details), cache, files)
    assert report["counts"]["theorems"] == 40
    assert "does not say" in report["unavailable"]["zeroed"]


@pytest.mark.parametrize(
    "details",
    [{"training": [1]}, {"training": {"options": {"epochs": "x"}}}, {"training": {"split": 3}},
     {"data": {"trajectories": [{}]}}],
)  # fmt: skip
def test_metadata_without_meaning_is_one_error(details, trained, tmp_path, run_cli):
    head, cache, files = trained
    bad = rewritten(head, tmp_path / "b.safetensors", details)
    code, _, err = run_cli("evaluate-head", bad.path, cache.path, "--trajectories", *files)
    assert code == 2
    assert "b.safetensors" in err


def test_a_figure_that_cannot_be_drawn_is_refused_first(trained, tmp_path, run_cli):
    head, cache, files = trained
    arguments = ("evaluate-head", head.path, cache.path, "--trajectories", *files, "--figure")
    for figure in (tmp_path / "x.gif", tmp_path / "no" / "x.svg"):
        code, out, err = run_cli(*arguments, figure)
        assert (code, out) == (2, "")
        assert "--figure" in err


def test_the_random_encoder_of_another_seed_has_heads_of_its_own(tmp_path, llama):
    path = str(write_rows(tmp_path / "t.parquet", searches(20)))
    output = str(tmp_path / "c.parquet")
    inputs = ["--model-path", str(llama), "--trajectories", path, "--output", output]
    assert main(["encode", *inputs, "--device", "cpu", "--quiet"]) == 0
    cache = open_cache(output)
    head = train_head(cache, [path], tmp_path / "h.safetensors", replace(FEW, epochs=2)).head

    def random_rank(seed, work):
        options = EvaluationOptions(seeds=1, seed=seed, work=str(tmp_path / work))
        report = evaluate_head(head, cache, [path], options)
        return report["siblings"]["provable"]["random_encoder"]["rank1"]

    kept = [random_rank(seed, "work") for seed in (0, 1, 0)]
    assert kept[0] == kept[2]
    assert kept[1] == random_rank(1, "fresh"), "heads of another seed's embeddings are not used"
