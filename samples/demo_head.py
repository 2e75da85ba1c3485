"""Trains an encoder and energy heads on recorded searches, and tells what the heads are worth.

    python samples/demo_head.py [demo-head-out] [--trajectories FILE...] [--expansions FILE...]
                                [--steps 500]

A small causal LM is trained on the texts of the searches, the states are encoded, and a head is
trained; then the same on the cache with 14.6 % of its rows replaced by zeros, as the origin's
server left them. Each step is kept: the same command resumes. `make demo-head` runs it.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Before anything imports torch: the package sets how torch's idle threads wait.
from ebm_encode import EnergyHead, open_cache
from ebm_encode.cli import main as ebm_encode
from promises import Broken, console, require, step

SEARCHES = Path(os.path.relpath(Path(__file__).parents[1] / "searches"))
ZEROED = 0.146
MOSTLY = 0.5
WIDTH = 130  # of the table, also on a narrower terminal
DEVICE = ("--device", "cpu")


def run_cli(*arguments: str, shown: bool = True) -> tuple[int, str]:
    """Shows a command and runs it; returns its exit code and what it printed."""
    console.print(Text(f"$ ebm-encode {' '.join(arguments)}", style="cyan"))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output):
        if shown:
            code = ebm_encode([*arguments])
        else:
            with contextlib.redirect_stderr(errors):
                code = ebm_encode([*arguments])
    return code, output.getvalue() + errors.getvalue()


def zero_rows(source: Path, target: Path, seed: int = 0) -> int:
    """Copies a cache with 14.6 % of its rows zeroed, past the writer, which would refuse them."""
    table = pq.read_table(source)
    rows = table["embedding"].combine_chunks()
    values = rows.values.to_numpy().copy()
    dim = len(values) // len(rows)
    lost = np.random.default_rng(seed).random(len(rows)) < ZEROED
    values.reshape(-1, dim)[lost] = 0.0
    spoiled = pa.ListArray.from_arrays(rows.offsets, pa.array(values), type=rows.type)
    field = table.schema.field("embedding")
    pq.write_table(table.set_column(1, field, spoiled), target)
    return int(lost.sum())


def held_out(files: list[str]) -> frozenset[str]:
    """Validation and test theorems, which neither the encoder nor the head learns from."""
    from ebm_encode.heads.corpus import read_corpus  # noqa: PLC0415
    from ebm_encode.heads.options import HeadOptions  # noqa: PLC0415
    from ebm_encode.heads.split import split_theorems  # noqa: PLC0415

    corpus = read_corpus(files)
    split = split_theorems(corpus.graphs, corpus.labels, HeadOptions())
    return frozenset(corpus.graphs[n].theorem for n in (*split.validation, *split.test))


def train_encoder(folder: Path, files: list[str], steps: int) -> Path:
    import train_model  # noqa: PLC0415  (takes seconds, so the title is printed before)

    texts = train_model.training_texts(files, held_out(files))
    console.print(f"  {len(texts):,} texts: states with a tactic that was applied to them")
    return train_model.train(folder, texts, steps)


def show_zeroed(cache: Path, files: list[str]) -> None:
    spoiled = cache.with_name("zeroed.parquet")
    lost = zero_rows(cache, spoiled)
    console.print(f"  {spoiled}: a copy with {lost:,} rows of zeros, made past the writer")
    code, printed = run_cli("audit", str(spoiled), "--examples", "1")
    console.print(Text(f"  {printed.splitlines()[0]} (exit code {code})"))
    require(code == 1, "audit finds zero vectors")
    head = str(cache.with_name("never.safetensors"))
    code, printed = run_cli(
        "train-head", str(spoiled), "--trajectories", *files, "--output", head, shown=False
    )
    console.print(Text(f"  {printed.splitlines()[0][:150]} (exit code {code})"))
    require(code == 1 and not Path(head).exists(), "no head is trained on zero vectors")


def tell(report: dict[str, Any]) -> None:
    """The table of the story."""
    told = (
        ("chance", "a random order"),
        ("policy", "the recorder's policy / depth^0.5"),
        ("shortest_text", "shortest text"),
        ("fewest_goals", "fewest goals"),
        ("token_counts", "linear head on token counts"),
        ("random_encoder", "head on the untrained encoder"),
        ("zeroed", "head, 14.6 % of its training rows zeroed"),
        ("zeroed_and_scored_so", "the same, and scoring such rows"),
        ("retrained", "head on the clean cache, same seeds"),
        ("head", "the head"),
        ("mixture", "the head and the policy, z-scored"),
        ("oracle", "oracle"),
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "provable", "nearest", "expansions", "solved within 8"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, words in told:
        if name not in report["replay"]:
            continue
        ranks = [report["siblings"][q][name] for q in ("provable", "nearest")]
        replayed = report["replay"][name]
        table.add_row(
            words,
            *(_with_interval(rank, "rank1") for rank in ranks),
            _with_interval(replayed, "mean_expansions", 1),
            _with_interval(replayed, "within_8"),
        )
    Console(soft_wrap=True, width=max(console.width, WIDTH)).print(table)
    for one in report["differences"]:
        if (one["of"], one["minus"]) in {
            ("head", "shortest_text"), ("head", "random_encoder"), ("retrained", "zeroed"),
            ("mixture", "policy"), ("mixture", "breadth_first"),
        }:  # fmt: skip
            low, high = one["interval"] or (float("nan"),) * 2
            verdict = "" if low > 0 or high < 0 else ", no difference shown"
            console.print(
                f"  {one['metric']}: {one['of']} less {one['minus']}: {one['mean']:+.3f}"
                f" [{low:+.3f}, {high:+.3f}]{verdict}"
            )


def _with_interval(found: dict[str, Any], key: str, digits: int = 2) -> str:
    low, high = found[f"{key}_interval"] or (float("nan"),) * 2
    return f"{found[key]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def check_sign(head: EnergyHead, cache: Path, files: list[str]) -> None:
    """A proved state next to the end must have a higher score than the theorems' roots, mostly."""
    from ebm_encode.heads.corpus import read_corpus  # noqa: PLC0415

    corpus, opened = read_corpus(files), open_cache(cache)
    last, roots = [], []
    for graph, label in zip(corpus.graphs, corpus.labels, strict=True):
        near = [graph.states[n] for n in np.flatnonzero(label.distance == 1)]
        if near and label.proved[graph.roots[0]]:
            last.append(near[0])
            roots.append(graph.states[graph.roots[0]])
    higher = head.scores(opened.gather(last)) > head.scores(opened.gather(roots))
    console.print(
        f"  one step before the end the score is higher than at the root in {higher.mean():.0%} of"
        f" {len(higher)} theorems"
    )
    require(bool(higher.mean() > MOSTLY), "the score is higher nearer to the proof")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-head-out"))
    parser.add_argument("--trajectories", nargs="+", default=[str(SEARCHES / "lean_core.parquet")])
    parser.add_argument(
        "--expansions", nargs="*", default=[str(SEARCHES / "_expansions" / "lean_core.parquet")]
    )
    parser.add_argument("--steps", type=int, default=500, help="steps of the encoder's training")
    arguments = parser.parse_args()
    folder, files = arguments.folder, arguments.trajectories
    folder.mkdir(parents=True, exist_ok=True)
    cache, head = folder / "states.parquet", folder / "head.safetensors"
    step(f"1. Train a small causal LM for {arguments.steps} steps (resumes if interrupted)")
    model = train_encoder(folder / "model", files, arguments.steps)
    step("2. Encode the states")
    code, printed = run_cli(
        "encode", "--model-path", str(model), "--trajectories", *files, "--output", str(cache),
        *DEVICE,
    )  # fmt: skip
    console.print(Text(printed.rstrip()))
    require(code == 0, "every state gets an embedding")
    step("3. Lose 14.6 % of the rows, as the origin's server did: nothing here takes them")
    show_zeroed(cache, files)
    step("4. Train a head on the clean cache")
    code, printed = run_cli(
        "train-head", str(cache), "--trajectories", *files, "--output", str(head)
    )
    console.print(Text(printed.rstrip()))
    require(code == 0, "a head is trained")
    check_sign(EnergyHead.open(head), cache, files)
    step("5. Compare it with heads on other inputs and with what needs no head (test theorems)")
    expansions = ("--expansions", *arguments.expansions) if arguments.expansions else ()
    code, printed = run_cli(
        "evaluate-head", str(head), str(cache), "--trajectories", *files, *expansions,
        "--model-path", str(model), "--figure", str(folder / "head.svg"), "--json",
    )  # fmt: skip
    require(code == 0, "a head is evaluated")
    (folder / "evaluation.json").write_text(printed)
    tell(json.loads(printed))
    console.print(f"\n  all of it: {folder / 'evaluation.json'}, {folder / 'head.svg'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as broken:
        console.print(Text(f"BROKEN: {broken}", style="bold red"))
        sys.exit(1)
