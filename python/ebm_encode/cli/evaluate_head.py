"""`ebm-encode evaluate-head`: what a head is worth, beside everything that needs no head."""

import json
import logging
from typing import Annotated, Any

from ebm_encode.cli.parameters import FLAG, JSON, MANY, require_names, whole
from ebm_encode.errors import require_model_libraries
from ebm_encode.options import OpenMode, PrintedFormat

log = logging.getLogger(__name__)

_WIDTH = 200
_METRICS = ("rank1", "mrr", "pairwise")


def evaluate_head(
    head: str,
    cache: str,
    /,
    *,
    trajectories: Annotated[list[str], MANY],
    expansions: Annotated[list[str] | None, MANY] = None,
    no_comparisons: Annotated[bool, FLAG] = False,
    seeds: Annotated[int, whole(at_least=1)] = 3,
    train_trajectories: Annotated[list[str] | None, MANY] = None,
    train_cache: str | None = None,
    model_path: str | None = None,
    random_cache: str | None = None,
    work: str | None = None,
    seed: Annotated[int, whole(at_least=0)] = 0,
    states_in: PrintedFormat | None = None,
    mode: OpenMode = "auto",
    figure: str | None = None,
    quiet: Annotated[bool, FLAG] = False,
    json_output: Annotated[bool, JSON] = False,
) -> int:
    """Evaluate a head on recorded searches, beside chance, policy, oracle and trivial rules.

    Prints how well each ranks the children of one parent, AUC in a tree, rank correlation with the
    distance to the proof, and what a replayed search needs, with 95 % bootstrap intervals over
    theorems. Of files that the head was trained on, only its test theorems count.

    Args:
        head: Head file, as `train-head` writes it.
        cache: Embeddings of the trajectories' states, of the head's encoder.
        trajectories: Parquet or JSON-lines files with recorded searches, folders, or patterns.
        expansions: Parquet files that say which states were expanded, and which are provable where
            that was decided.
        no_comparisons: Train no heads to compare with (linear, token_counts, zeroed,
            random_encoder); faster.
        seeds: Seeds of each head to compare with.
        train_trajectories: Files that the head was trained on, if they have moved.
        train_cache: Cache that it was trained on, if it has moved.
        model_path: Model of the cache, of which random_encoder is a copy with random weights
            (default: the one in the cache's provenance, if it is small).
        random_cache: Embeddings of such a copy that were made before.
        work: Folder that keeps what takes long to make (default: HEAD.comparisons).
        seed: Seed of intervals and random orders.
        states_in: Printed form that the states are in, if the cache is of an encoder with a
            --state-format: they are converted to that (default: what the texts show).
        mode: Hold the cache in memory, or leave it mapped.
        figure: Picture of the result: .svg, .png or .pdf.
        quiet: Show no progress.
        json_output: Print JSON.
    """
    if quiet:
        logging.getLogger("ebm_encode").setLevel(logging.WARNING)
    require_names(head=head, cache=cache, trajectories=trajectories)
    require_model_libraries()
    from ebm_encode import EnergyHead  # noqa: PLC0415
    from ebm_encode.heads.evaluation import (  # noqa: PLC0415  (torch, only once it is needed)
        EvaluationOptions,
    )
    from ebm_encode.heads.evaluation import evaluate_head as evaluate  # noqa: PLC0415
    from ebm_encode.heads.trainer import require_places  # noqa: PLC0415
    from ebm_encode.opening import open_cache  # noqa: PLC0415

    require_places(figure=figure)
    report = evaluate(
        EnergyHead.open(head),
        open_cache(cache, mode=mode),
        trajectories,
        EvaluationOptions(
            expansions=expansions,
            comparisons=not no_comparisons,
            seeds=seeds,
            train_trajectories=train_trajectories,
            train_cache=train_cache,
            model_path=model_path,
            random_cache=random_cache,
            work=work,
            seed=seed,
            states_in=states_in,
        ),
        on_step=lambda what: log.info("%s", what),
    )
    if json_output:
        print(json.dumps(report, ensure_ascii=False))  # noqa: T201
    else:
        print_report(report)
    if figure:
        from ebm_encode.heads.figures import draw_evaluation  # noqa: PLC0415

        draw_evaluation(figure, report)
    return 0


def print_report(report: dict[str, Any]) -> None:
    """Prints the tables."""
    from rich.console import Console  # noqa: PLC0415

    # Tables are not cut to a narrow terminal: their lines wrap there.
    console = Console(highlight=False, soft_wrap=True)
    console = Console(highlight=False, soft_wrap=True, width=max(console.width, _WIDTH))
    counts = report["counts"]
    console.print(
        f"{counts['theorems']:,} solved theorems, {counts['states']:,} states"
        f" ({counts['states_in_train']:,} stand in train and are excluded from the sibling sets)"
    )
    if counts["theorems_in_train"]:
        console.print(f"{counts['theorems_in_train']:,} theorems stand in train and do not count")
    if not counts["train_states_known"]:
        console.print(
            "the training files are not there: theorems of the training are known by their roots,"
            " single states are not"
        )
    if counts["replayed"] < counts["theorems"]:
        console.print(
            f"{counts['replayed']:,} of the theorems can be replayed: their root is proved"
        )
    for question, rankers in report["siblings"].items():
        title = f"children of one parent, {question}: {counts[f'sets_{question}']:,} sets"
        console.print(_sibling_table(title, rankers))
    console.print(_replay_table(report["replay"]))
    console.print(_tree_table(report["trees"]))
    console.print(_difference_table(report["differences"]))
    for name, reason in report["unavailable"].items():
        console.print(f"{name}: not there: {reason}", markup=False)


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _sibling_table(title: str, rankers: dict[str, Any]) -> Any:
    depths = [*next(iter(rankers.values()))["rank1_by_depth"]]
    table = _table(title, "ranker", *_METRICS, *(f"rank1 at depth {d}" for d in depths))
    for name, found in rankers.items():
        table.add_row(
            name,
            *(_with_interval(found, metric) for metric in _METRICS),
            *(_number(found["rank1_by_depth"].get(depth)) for depth in depths),
        )
    return table


def _replay_table(rankers: dict[str, Any]) -> Any:
    within = [key for key in next(iter(rankers.values())) if key.startswith("within_")]
    within = [key for key in within if not key.endswith("interval")]
    table = _table(
        "replayed search: expansions to the proof, and the share solved within a number of them",
        "ranker",
        "expansions",
        *(key.removeprefix("within_") for key in within),
        "never expanded",
    )
    for name, found in rankers.items():
        table.add_row(
            name,
            _with_interval(found, "mean_expansions", 1),
            *(_with_interval(found, key) for key in within),
            _number(found["never_expanded"], 1),
        )
    return table


def _tree_table(rankers: dict[str, Any]) -> Any:
    table = _table(
        "in a tree: proved against other states, and distance along proofs",
        "ranker",
        "AUC",
        "distance correlation",
        "energy gap",
        "in deviations",
    )
    for name, found in rankers.items():
        table.add_row(
            name,
            _with_interval(found, "auc"),
            _with_interval(found, "distance_correlation"),
            _with_interval(found, "energy_gap"),
            _number(found["gap_deviations"]),
        )
    return table


def _difference_table(differences: list[dict[str, Any]]) -> Any:
    table = _table("differences, paired over theorems", "metric", "of", "minus", "mean")
    for one in differences:
        table.add_row(
            one["metric"],
            one["of"],
            one["minus"],
            _with_interval({"mean": one["mean"], "mean_interval": one["interval"]}, "mean", 3),
        )
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_interval(found: dict[str, Any], key: str, digits: int = 2) -> str:
    interval = found[f"{key}_interval"]
    value = _number(found[key], digits)
    if interval is None:
        return value
    return f"{value} [{_number(interval[0], digits)}, {_number(interval[1], digits)}]"
