"""Proves theorems in a real Lean, with and without an energy head.

    python samples/demo_search.py [demo-search-out] [--theorems 30] [--expansions 32] [--steps 60]

A small causal LM is trained for a minute on the recorded searches, their states are encoded, and a
head is trained. Then theorems that neither has seen are searched in Lean, with the same list of
tactics: breadth-first, and by the head. Each proof is checked by Lean as a whole, in a process of
its own. Each step is kept: the same command resumes. `make demo-search` runs it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from demo_head import DEVICE, SEARCHES, held_out, run_cli, train_encoder

# Before anything imports torch: the package sets how torch's idle threads wait.
from ebm_encode.heads.corpus import read_corpus
from promises import Broken, console, require, step

ROOT = Path(__file__).parents[1]
PROVER = ROOT / "target" / "release" / "ebm-prover"
BUDGETS = ("8", "16", "32")
SHOWN = 3


def prove(folder: Path, theorems: Path, name: str, expansions: int, *more: str) -> dict[str, Any]:
    """Searches for proofs in Lean; the trees go to `folder / name.parquet`."""
    output = folder / f"{name}.parquet"
    command = [
        str(PROVER), "search", "--trajectories", str(theorems), "--environment", "lean",
        "--policy", "uniform", "--max-expansions", str(expansions),
        "--output", str(output), "--resume", *more,
    ]  # fmt: skip
    console.print(Text(f"$ ebm-prover {' '.join(command[1:])}", style="cyan"))
    done = subprocess.run(  # noqa: S603  (our own program)
        [*command, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    require(bool(done.stdout), f"the search {name} ends with a report")
    report: dict[str, Any] = json.loads(done.stdout)
    require(report["unscored"] == 0, "every state has a score")
    require(done.returncode == 0, f"the search {name} ends well")
    return report


def unseen(folder: Path, files: list[str], most: int) -> Path:
    """A file with the recorded searches of theorems that no model learns from."""
    names = sorted(held_out(files))
    chosen = names[:: max(1, len(names) // most)][:most]
    table = pq.read_table(files)
    path = folder / "theorems.parquet"
    pq.write_table(table.filter(pc.field("theorem_name").isin(chosen)), path)
    return path


def tell(reports: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "solved", *(f"within {budget}" for budget in BUDGETS), "tactics/s"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, report in reports.items():
        tactics = sum(one["tactics"] for one in report["theorems"])
        rate = "resumed" if report["resumed"] else f"{tactics / report['seconds']:.0f}"
        within = (str(report["solved_within"][budget]) for budget in BUDGETS)
        table.add_row(name, f"{report['solved']} of {report['attempted']}", *within, rate)
    console.print(table)


def show_proofs(report: dict[str, Any]) -> None:
    proofs = [one for one in report["theorems"] if one.get("proof")]
    longest = sorted(proofs, key=lambda one: len(one["proof"]))[-SHOWN:]
    for one in longest:
        console.print(Text(f"  {one['theorem']}, after {one['proof_expansions']} expansions:"))
        for tactic in one["proof"]:
            console.print(Text(f"    {tactic}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-search-out"))
    parser.add_argument("--theorems", type=int, default=30)
    parser.add_argument("--expansions", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="steps of the encoder's training")
    arguments = parser.parse_args()
    folder, files = arguments.folder, [str(SEARCHES / "lean_core.parquet")]
    folder.mkdir(parents=True, exist_ok=True)
    cache, head = folder / "states.parquet", folder / "head.safetensors"
    step(f"1. Train a small causal LM for {arguments.steps} steps, and encode the recorded states")
    model = train_encoder(folder / "model", files, arguments.steps)
    code, printed = run_cli(
        "encode", "--model-path", str(model), "--trajectories", *files, "--output", str(cache),
        *DEVICE,
    )  # fmt: skip
    console.print(Text(printed.rstrip()))
    require(code == 0, "every state gets an embedding")
    step("2. Train a head")
    code, printed = run_cli(
        "train-head", str(cache), "--trajectories", *files, "--output", str(head)
    )
    console.print(Text(printed.rstrip()))
    require(code == 0, "a head is trained")
    theorems = unseen(folder, files, arguments.theorems)
    count = len(read_corpus([str(theorems)]).graphs)
    step(f"3. Prove {count} theorems that neither model nor head has seen, in Lean")
    ranked = ("--head", str(head), "--cache", str(cache), "--model-path", str(model), *DEVICE)
    searches = {
        "breadth-first": ("--ranking", "breadth-first"),
        "shortest state": ("--ranking", "shortest"),
        "head": ("--ranking", "head", *ranked),
        "head and policy": ("--ranking", "mixture", *ranked),
    }
    reports = {
        name: prove(folder, theorems, name.replace(" ", "-"), arguments.expansions, *options)
        for name, options in searches.items()
    }
    step("4. What was proved; every proof was checked by Lean as a whole, in a process of its own")
    tell(reports)
    show_proofs(reports["head"])
    console.print(
        "\n  The budget is small and so is the model: the head is worth what the table says, on"
        f" {count} theorems."
    )
    trees = folder / "head.parquet"
    console.print(f"  {trees} has the trees, for the next head:")
    console.print(f"  ebm-encode train-head CACHE --trajectories {trees} --output NEXT.safetensors")
    require(reports["head"]["solved"] > 0, "theorems are proved in a real Lean")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as broken:
        console.print(Text(f"BROKEN: {broken}", style="bold red"))
        sys.exit(1)
