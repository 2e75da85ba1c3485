"""Shows on real proof states what this project promises, and checks it.

    python samples/demo.py [demo-out] [--prover target/release/ebm-prover]

Encodes the sample states with a small random model, measures the speed beside a plain padded
Hugging Face loop, damages copies of the cache, and reads it in Python, Rust, DuckDB and Polars.
Exits with 1 if a promise does not hold. `make demo` runs it.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# Before anything imports torch: the package sets how torch's idle threads wait.
from ebm_encode import EmbeddingCache, Encoder
from ebm_encode.cli import main as ebm_encode
from promises import Broken, console, require, step

SAMPLES = Path(os.path.relpath(Path(__file__).parent))
BATCH = 32  # of the padded loop
ROUNDS = 3
NEIGHBOURS = 3
DEVICE = ("--device", "cpu")  # where the padded loop runs too, and as `plan` counts
ROUNDING = 1e-5  # largest relative difference of float32 embeddings of one state
# A state whose neighbours resemble it even in a random model: they have most tokens in common.
QUERY = "⊢ coeff f ((revAt (natDegree f)) 1) = nextCoeff f"


def tell(text: str) -> None:
    console.print(Text("  " + text))


def show(rows: list[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Prints a small table, of which only the last column is cut to the width of the terminal."""
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    for column in list(zip(*rows, strict=True))[:-1]:
        table.add_column(no_wrap=True, min_width=max(map(len, column)))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    if header:
        table.add_row(*header, style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Padding(table, (0, 0, 0, 2)), soft_wrap=False)


def goal(state: str) -> str:
    """The first goal of a Lean state, on one line."""
    _, _, after = state.partition("⊢")
    return "⊢ " + " ".join(after.split("\n\n")[0].split())


def run_cli(*arguments: str) -> tuple[int, Any]:
    """Shows a command, runs it, and returns its exit code and its JSON."""
    console.print(Text(f"$ ebm-encode {' '.join(arguments)}", style="cyan"))
    output = io.StringIO()
    quiet = ["--quiet"] if arguments[0] == "encode" else []
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = ebm_encode([*arguments, *quiet, "--json"])
    if not output.getvalue():
        raise Broken(f"ebm-encode {arguments[0]} ended with {code}: {errors.getvalue()}")
    return code, json.loads(output.getvalue())


def run_prover(prover: Path, *arguments: str) -> str:
    console.print(Text(f"$ ebm-prover {' '.join(map(_short, arguments))}", style="cyan"))
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}  # whose Python it starts
    done = subprocess.run(  # noqa: S603
        [prover, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise Broken(f"ebm-prover {arguments[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def _short(argument: str) -> str:
    return argument if "\n" not in argument else f"'... {goal(argument)}'"


def make_model(folder: Path) -> Path:
    import tiny_model  # noqa: PLC0415  (takes seconds, so the title is printed before)

    tokenizer = tiny_model.train_tokenizer(tiny_model.sample_states())
    tiny_model.make_model(folder, tokenizer)
    tell(f"{folder}: a Llama, 64 wide, 3 layers, random weights")
    return folder


def encode(model: Path, output: Path) -> None:
    files = sorted(str(file) for file in SAMPLES.glob("*.parquet"))
    inputs = ("--model-path", str(model), "--trajectories", *files)
    code, summary = run_cli("encode", *inputs, "--output", str(output), *DEVICE)
    require(code == 0 and not summary["quarantined"], "every state gets an embedding")
    with contextlib.redirect_stdout(io.StringIO()) as plan:
        ebm_encode(["plan", *inputs, "--json"])
    read, cost = summary["input"], json.loads(plan.getvalue())
    tell(
        f"{read['unique']:,} states from {len(files)} files ({read['rows']:,} rows:"
        f" {read['repeated']:,} duplicates, {read['proof_complete']:,} finished proof)"
    )
    given, computed = cost["tokens"], cost["window_nodes"]
    padded = cost["padded_slots"]["by text"]
    waste = f"{padded / computed:.1f}x as many, {1 - given / padded:.0%} of them padding"
    show(
        [
            ("tokens in the prompts", f"{given:>7,}", ""),
            ("tokens computed", f"{computed:>7,}", "shared prefixes once, no padding"),
            (f"padded batches of {BATCH}", f"{padded:>7,}", waste),
        ]
    )
    checked = summary["verification"]
    tell(
        f"verified: {checked['rows']} embeddings re-encoded at batch size 1, relative error"
        f" {checked['max_relative_error']:.0e} at most"
    )


def difference(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest value of `theirs`."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


class Way(NamedTuple):
    """A way to embed states.

    Attributes:
        name: What it is called in the table.
        embed: Gives the embeddings of all states, float32 `[states, dim]`.
    """

    name: str
    embed: Callable[[], NDArray[np.float32]]


def padded_loop(model_path: Path, states: list[str]) -> Way:
    """What one writes first: tokenizer with padding, model, mean over the mask; no logits."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.utils.logging.set_verbosity_error()  # the head is skipped on purpose
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    model = transformers.AutoModel.from_pretrained(model_path).eval()

    @torch.inference_mode()
    def embed() -> NDArray[np.float32]:
        found = []
        for start in range(0, len(states), BATCH):
            batch = tokenizer(states[start : start + BATCH], padding=True, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            found.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(found).numpy()

    return Way(f"Hugging Face loop, padded, batches of {BATCH}", embed)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute with one thread: so small a model gains nothing from more."""
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_speed(model: Path, states: list[str]) -> None:
    with one_thread():
        encoder = Encoder.load(str(model), device="cpu")
        ways = [Way("ebm-encode", lambda: encoder.encode(states)), padded_loop(model, states)]
        encoder.encode(states)  # compares the longest ones with the reference, as a run does once
        found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(ways)
        seconds: list[list[float]] = [[] for _ in ways]
        for _ in range(ROUNDS):
            for number, way in enumerate(ways):  # in turns, so that both meet the same machine
                start = time.perf_counter()
                found[number] = way.embed()
                seconds[number].append(time.perf_counter() - start)
    ours, padded = (statistics.median(taken) for taken in seconds)
    show(
        [
            (ways[0].name, f"{len(states) / ours:>5,.0f} states/s", ""),
            (
                ways[1].name,
                f"{len(states) / padded:>5,.0f} states/s",
                f"{padded / ours:.1f}x as long",
            ),
        ]
    )
    error = difference(*found)
    require(error < ROUNDING, "embeddings equal those of the padded loop")
    tell(f"same embeddings from both: largest relative difference {error:.0e}")
    tell("(a random model this small; docs/benchmarks.md has larger ones)")


def damage(cache: Path, output: Path) -> list[int]:
    """Writes a copy with bad embeddings and right checksums; returns their rows."""
    table = pq.read_table(cache)
    column = table.schema.get_field_index("embedding")
    rows = np.stack(table[column].to_numpy())
    zeroed, copied, not_a_number = [7, 70, 200], 301, 402
    rows[zeroed] = 0
    rows[copied] = rows[12]
    rows[not_a_number, 5] = np.nan
    damaged = pa.array(list(rows), table.schema.field(column).type)
    table = table.set_column(column, table.schema.field(column), damaged)
    pq.write_table(table, output, write_page_checksum=True)
    return sorted([*zeroed, copied, not_a_number])


def catch_damage(cache: Path, states: list[str]) -> None:
    damaged = cache.with_name("damaged.parquet")
    rows = damage(cache, damaged)
    tell("a copy by pyarrow, with right checksums: 3 embeddings zeroed, 1 copied, 1 NaN")
    code, (report,) = run_cli("audit", str(damaged))
    found = sorted(report["examples"], key=lambda bad: bad["row"])
    show(
        [(str(bad["row"]), bad["kind"], goal(states[bad["row"]])) for bad in found],
        header=("row", "kind", "state"),
    )
    require(code == 1 and [bad["row"] for bad in found] == rows, "audit finds bad embeddings")
    tell(f"exit code {code}: {len(found)} bad embeddings of {report['rows']}")
    flipped = cache.with_name("flipped.parquet")
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    tell("another copy, with one bit flipped")
    code, (report,) = run_cli("audit", str(flipped))
    require(code == 2 and "error" in report, "a flipped bit is found")  # noqa: PLR2004
    tell(f"exit code {code}:{report['error'].rpartition('error:')[2]}")


def read_everywhere(path: Path, query: str, prover: Path) -> None:
    cache = EmbeddingCache.open(path)
    row = cache[query]
    near = [(s, c) for s, c in cache.nearest(query, NEIGHBOURS + 1) if s != query][:NEIGHBOURS]
    rust = run_prover(prover, "inspect", str(path), "--near", query)
    by_rust = [float(cosine) for cosine in re.findall(r"^ +(-?[01]\.\d+) ", rust, re.MULTILINE)]
    statement = (
        "SELECT list_cosine_similarity(embedding, $row::FLOAT[]) FROM read_parquet($path)"
        " WHERE state_pp <> $query ORDER BY 1 DESC LIMIT $count"
    )
    given = {"row": row.tolist(), "path": str(path), "query": query, "count": NEIGHBOURS}
    by_duckdb = [float(cosine) for (cosine,) in duckdb.execute(statement, given).fetchall()]
    tell(f"nearest to {goal(query)}")
    readers = [[cosine for _, cosine in near], by_rust, by_duckdb]
    require(len(by_rust) == len(near) == len(by_duckdb), "all readers print the neighbours")
    require(np.allclose(readers, readers[0], atol=1e-4), "all readers see the same embeddings")
    show(
        [
            (*(f"{cosine:.4f}" for cosine in cosines), goal(state))
            for (state, _), *cosines in zip(near, *readers, strict=True)
        ],
        header=("Python", "Rust", "DuckDB", "state"),
    )
    by_polars = pl.read_parquet(path).filter(pl.col("state_pp") == query)["embedding"][0]
    require(np.array_equal(by_polars.to_numpy(), row), "Polars reads the same values")
    tell(f"Polars reads the same embedding: {len(row)} values, bit for bit")


def encode_in_rust(model: Path, cache: Path, query: str, prover: Path) -> None:
    file = cache.with_name("state.txt")
    file.write_text(query, encoding="utf-8")
    arguments = ("--model-path", str(model), "--states", str(file), *DEVICE, "--json")
    answer = json.loads(run_prover(prover, "encode", *arguments))
    stored = EmbeddingCache.open(cache)[query]
    error = difference(np.array(answer["embedding"], np.float32), stored)
    require(error < ROUNDING, "a Rust process computes the embedding that the cache has")
    tell(f"it computes the cached embedding again: largest relative difference {error:.0e}")


def demo(folder: Path, prover: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "states.parquet"
    cache.unlink(missing_ok=True)
    step("1. Make a small model (loading torch takes a few seconds)")
    model = make_model(folder / "model")
    step("2. Encode real Lean proof states into a checked cache")
    encode(model, cache)
    states = EmbeddingCache.open(cache).states()
    step(f"3. Measure the speed here: one CPU thread, {len(states)} states, median of {ROUNDS}")
    measure_speed(model, sorted(states))  # in text order, as `plan` counts the padding
    step("4. Damage copies of the cache, and audit them")
    catch_damage(cache, states)
    query = next(state for state in states if goal(state) == QUERY)
    step("5. Read the cache from Python, Rust, DuckDB and Polars")
    read_everywhere(cache, query, prover)
    step("6. Run the same model inside a Rust process")
    encode_in_rust(model, cache, query, prover)
    console.print(f"\nEverything above was checked. The files are in {folder}/.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-out"))
    parser.add_argument("--prover", type=Path, default=Path("target/release/ebm-prover"))
    arguments = parser.parse_args()
    try:
        demo(arguments.folder, arguments.prover)
    except Broken as promise:
        console.print(f"does not hold: {promise}", style="bold red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
