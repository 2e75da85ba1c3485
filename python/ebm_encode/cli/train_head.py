"""`ebm-encode train-head`: an energy head from a cache and recorded searches."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from cyclopts import Parameter
from cyclopts.validators import Number

from ebm_encode.cli.console import stderr_console
from ebm_encode.cli.parameters import FLAG, JSON, MANY, require_names, whole
from ebm_encode.errors import ArgumentError, require_model_libraries
from ebm_encode.heads.options import Architecture, HeadOptions, Labels, Loss
from ebm_encode.options import OpenMode, PrintedFormat

if TYPE_CHECKING:
    from ebm_encode.heads.probe import Probe
    from ebm_encode.heads.trainer import HeadReport

log = logging.getLogger(__name__)

AtLeastOne = whole(at_least=1)
SHARE = Parameter(validator=Number(gte=0, lte=1))
_SHOWN = 5


def train_head(
    cache: str,
    /,
    *,
    trajectories: Annotated[list[str], MANY],
    output: str,
    architecture: Architecture = "auto",
    loss: Loss = "sibling",
    labels: Labels = "graph",
    expansions: Annotated[list[str] | None, MANY] = None,
    members: Annotated[int, AtLeastOne] = 1,
    seed: Annotated[int, whole(at_least=0)] = 0,
    epochs: Annotated[int, AtLeastOne] = 40,
    patience: Annotated[int, AtLeastOne] = 8,
    batch_states: Annotated[int, AtLeastOne] = 512,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    warmup: Annotated[float, SHARE] = 0.05,
    clip: float = 1.0,
    dropout: float = 0.1,
    spectral_norm: Annotated[bool, FLAG] = False,
    pair_weight: float = 1.0,
    distance_weight: float | None = None,
    distance_scale: float = 4.0,
    validation: Annotated[float, SHARE] = 0.15,
    test: Annotated[float, SHARE] = 0.15,
    max_missing: Annotated[float, SHARE] = 0.01,
    device: str = "cpu",
    states_in: PrintedFormat | None = None,
    mode: OpenMode = "auto",
    figure: str | None = None,
    log_file: str | None = None,
    quiet: Annotated[bool, FLAG] = False,
    json_summary: Annotated[bool, JSON] = False,
) -> int:
    """Train an energy head on a cache of embeddings and the searches they come from.

    The head learns which child of a state is closer to a proof. Labels come from the graph of all
    recorded steps: a state is proved if a recorded path leads from it to the end of a proof, and
    what is not proved is not called negative. Killed at any moment, the same command resumes and
    ends with the same head.

    Example: `ebm-encode train-head states.parquet --trajectories runs/*.parquet --output
    head.safetensors`

    Args:
        cache: Embeddings of the states: a Parquet file or a folder, as `encode` writes them.
        trajectories: Parquet or JSON-lines files with recorded searches (theorem_name, state_id,
            state_pp, parent_state_id, is_proof_complete; llm_log_prob if recorded), folders of
            them, or glob patterns.
        output: Head file to write, a safetensors file. Checkpoints go to OUTPUT.training
            until it is written.
        architecture: linear; mlp (hidden layers 256, 64); origin (2048, 1024, 512); auto trains the
            first two and takes the one that ranks validation siblings better.
        loss: sibling: softmax over the recorded children of one parent, plus pairs ordered by
            distance. infonce, margin: a positive against seven sampled negatives, as the origin
            trains.
        labels: graph, or file: the columns label and remaining_depth.
        expansions: Parquet files that say which states were expanded (theorem_name, state_id,
            expanded), which tells a dead end from a state that was never tried.
        members: Heads of an ensemble, with seeds from --seed on; the energy is their mean.
        seed: Seed of split, weights, order and dropout. The same seed gives the same head on one
            device with one number of threads.
        epochs: Most passes over the training states.
        patience: Stop after so many epochs without a better validation rank.
        batch_states: States of a batch, about.
        learning_rate: Of AdamW, at its highest.
        weight_decay: Of AdamW.
        warmup: Share of the steps over which the learning rate rises.
        clip: Largest norm of the gradient.
        dropout: Share of hidden values dropped in training.
        spectral_norm: Hold each layer's largest singular value at 1.
        pair_weight: Weight of the pairs ordered by distance, in the loss sibling.
        distance_weight: Weight of the distance term (default: 0.05, and 0.3 for the origin's).
        distance_scale: Steps that count as one unit of energy in the distance term.
        validation: Share of the solved theorems that choose epoch, architecture and weight.
        test: Share of the solved theorems kept aside for `evaluate-head`.
        max_missing: Largest share of states that the cache may lack.
        device: Torch device.
        states_in: Printed form that the states are in, if the cache is of an encoder with a
            --state-format: they are converted to that (default: what the texts show).
        mode: Hold the cache in memory, or leave it mapped.
        figure: Picture of the learning curves: .svg, .png or .pdf (default: OUTPUT.svg).
        log_file: JSON lines, one an epoch (default: OUTPUT.log.jsonl).
        quiet: Show no progress and no summary.
        json_summary: Print the summary as JSON on standard output.
    """
    if quiet:
        logging.getLogger("ebm_encode").setLevel(logging.WARNING)
    require_names(cache=cache, output=output, trajectories=trajectories)
    if Path(output).suffix != ".safetensors" or not Path(output).absolute().parent.is_dir():
        raise ArgumentError(
            f"`output` {output}: expected a name that ends in .safetensors, in a folder that exists"
        )
    if distance_weight is None:
        distance_weight = 0.05 if loss == "sibling" else 0.3
    options = HeadOptions(
        architecture=architecture,
        loss=loss,
        labels=labels,
        dropout=dropout,
        spectral_norm=spectral_norm,
        members=members,
        seed=seed,
        epochs=epochs,
        patience=patience,
        batch_states=batch_states,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        pair_weight=pair_weight,
        distance_weight=distance_weight,
        distance_scale=distance_scale,
        validation=validation,
        test=test,
        max_missing=max_missing,
    )
    require_model_libraries()
    from ebm_encode.heads import trainer  # noqa: PLC0415  (torch, only once it is needed)
    from ebm_encode.opening import open_cache  # noqa: PLC0415

    watch = _Watch(epochs, quiet=quiet)
    with watch:
        report = trainer.train_head(
            open_cache(cache, mode=mode),
            trajectories,
            output,
            options,
            device=device,
            expansions=expansions,
            states_in=states_in,
            figure=figure or f"{output}.svg",
            log_file=log_file or f"{output}.log.jsonl",
            on_start=watch.start,
            on_epoch=watch.epoch,
        )
    if json_summary:
        print(json.dumps(_as_json(report), ensure_ascii=False))  # noqa: T201
    elif not quiet:
        _print(report, output)
    return 0


class _Watch:
    """Shows the data before training, and each epoch: a bar on a terminal, a log line elsewhere."""

    def __init__(self, epochs: int, *, quiet: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._epochs, self._quiet = epochs, quiet
        self._chance: dict[str, float] = {}
        console = stderr_console()
        self._bar: Any = None
        if not quiet and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[measured]}"),
                console=console,
            )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def start(
        self, counts: dict[str, int], probes: "list[Probe]", chance: dict[str, float]
    ) -> None:
        """Tells what is in the data."""
        self._chance = chance
        log.info(
            "%s states of %s theorems (%s solved: %s train, %s validation, %s test): %s proved,"
            " %s exhausted, %s unknown",
            *(
                f"{counts[name]:,}"
                for name in (
                    *("states", "theorems", "solved", "train", "validation", "test"),
                    *("proved", "exhausted", "unknown"),
                )
            ),
        )
        for name, what in (
            ("missing", "states are not in the cache and are skipped"),
            ("without_parent", "rows have a parent that is not in the file, or not clear"),
            ("loops", "steps lead from a state to itself and do not count"),
            ("empty", "rows have no text and are no finished proof"),
            ("validation_states_in_train", "validation states stand in train too and do not count"),
            ("test_states_in_train", "test states stand in train too and do not count"),
        ):
            if counts[name]:
                log.info("%s %s", f"{counts[name]:,}", what)
        for probe in probes:
            if probe.warns:
                log.warning(
                    "print style and length alone tell %s apart: AUC %.2f (most by: %s). A head may"
                    " learn the printer instead of the proof; compare it with the rules of"
                    " evaluate-head",
                    probe.what,
                    probe.auc,
                    ", ".join(probe.strongest),
                )

    def epoch(self, name: str, measured: dict[str, float]) -> None:
        """Tells what an epoch measured."""
        ranks = ", ".join(
            f"{question} {measured[question]:.3f} (chance {chance:.3f})"
            for question, chance in self._chance.items()
        )
        line = (
            f"loss {measured['loss']:.3f}, energy gap {measured['energy_gap']:.2f}, rank-1 {ranks}"
        )
        if self._bar:
            if name not in self._tasks:
                self._tasks[name] = self._bar.add_task(name, total=self._epochs, measured="")
            self._bar.update(self._tasks[name], completed=measured["epoch"], measured=line)
        elif not self._quiet:
            log.info("%s epoch %d: %s", name, measured["epoch"], line)


def _as_json(report: "HeadReport") -> dict[str, Any]:
    return {
        "output": report.head.path,
        "architecture": report.architecture,
        "dims": report.head.dims,
        "members": report.head.members,
        "counts": report.counts,
        "chance": report.chance,
        "best": report.best,
        "mixing": report.mixing.as_dict(),
        "probes": [{"what": p.what, "auc": p.auc, "flags": p.strongest} for p in report.probes],
        "missing": report.missing[:_SHOWN],
    }


def _print(report: "HeadReport", output: str) -> None:
    widths = " -> ".join(map(str, report.head.dims))
    print(f"{output}: {report.architecture} head, {widths}, {report.head.members} member(s)")  # noqa: T201
    for name, best in report.best.items():
        ranks = ", ".join(
            f"{question} {best[question]:.3f} (chance {chance:.3f})"
            for question, chance in report.chance.items()
        )
        print(f"  {name}: best epoch {best['epoch']:.0f}, validation rank-1 {ranks}")  # noqa: T201
    mixing = report.mixing
    print(  # noqa: T201
        f"  search: {mixing.weight:g} of the value, {1 - mixing.weight:g} of the policy"
        f" (cumulative log-prob / depth^{mixing.exponent:g}), chosen by replay"
    )
    print("  sign: energy, lower is better; a search gets the score, minus energy")  # noqa: T201
