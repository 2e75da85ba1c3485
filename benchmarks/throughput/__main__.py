"""Encoding throughput beside other ways to the same embeddings: same model, states and dtype.

    python benchmarks/throughput TRAJECTORIES [--size small] [--states 1000] [--rounds 3]
        [--stretch shared|unrelated|whole] [--start 0.5] [--contenders ours,unbatched,...]
        [--vllm-python PYTHON] [--words 8192] [--vocabulary 32000] [--template raw]
        [--device cuda] [--dtype bfloat16] [--corpus 217499]

TRAJECTORIES are Parquet files of real proof states. `--stretch shared` takes neighbours in text
order, with the sharing that they have, in each round from another part of the corpus; `--stretch
unrelated` takes states of which no two begin alike; `--stretch whole` goes through all of them,
`--states` in each round. The model has seeded random weights; its tokenizer is trained on the
states.

Every contender runs in its own process, in turns, round after round, so that noise of the machine
hits all alike; a ratio compares two contenders of the same round. Medians are printed, and under
"together" the ratio of the times of all rounds.

Matmuls of the model's largest shape take turns with the work in each process. "matmul peak" is the
FLOPs that the unique tokens need (after prefix sharing), over time, as a share of what these
matmuls sustain; "best matmul" as a share of the fastest one. A contender whose embeddings differ
from the unbatched reference is shown as failed. The column "error" is relative to the largest value
in float32, and 1 - cosine in 16 bits.

On one GPU, with the shape of a 7B prover model: `--size 7b --vocabulary 102400 --dtype bfloat16
--device cuda --states 8192 --template deepseek-prover-v2`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from contenders import CONTENDERS, SIZES

from ebm_encode.engines.reference import compare
from ebm_encode.prompts.templates import Template

sys.path.insert(0, str(Path(__file__).parents[2] / "samples"))
import tiny_model

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-4, "float16": 5e-4}
_LONGEST = 2048
_OURS = "ours"


def real_states(files: list[Path]) -> list[str]:
    """The distinct states of trajectory files, in the order of their texts."""
    found: set[str] = set()
    for file in files:
        found.update(
            filter(None, pq.read_table(file, columns=["state_pp"])["state_pp"].to_pylist())
        )
    return sorted(found)


def stretches(states: list[str], options: Any) -> Iterator[list[str]]:
    """The states of every round."""
    count = options.states
    if options.stretch == "whole":
        yield from (states[first : first + count] for first in range(0, len(states), count))
        return
    if options.stretch == "unrelated":
        apart = {state[:12]: state for state in states}
        step = max(len(apart) // count, 1)
        yield from [sorted(apart.values())[::step][:count]] * options.rounds
        return
    for number in range(options.rounds):
        spread = (number + 1) / (options.rounds + 1)
        first = int((len(states) - count) * (spread if options.start is None else options.start))
        yield states[first : first + count]


def make_model(
    folder: Path, size: str, states: list[str], options: Any, markers: list[str]
) -> None:
    """A Llama of a size with seeded random weights.

    Its tokenizer has `--words` tokens and the markers of a template; its embeddings and its head
    are for `--vocabulary` tokens, of which some may not be used, as in real models.
    """
    tokenizer = tiny_model.train_tokenizer(states[:: max(len(states) // 4000, 1)], options.words)
    tokenizer.add_tokens(markers, special_tokens=True)
    width, depth, inner, head = SIZES[size]
    shape = {
        "hidden_size": width, "num_hidden_layers": depth, "intermediate_size": inner,
        "num_attention_heads": width // head, "num_key_value_heads": width // head,
        "head_dim": head, "max_position_embeddings": _LONGEST,
        "vocab_size": max(options.vocabulary, len(tokenizer)),
    }  # fmt: skip
    tokenizer.pad_token = "</s>"
    tokenizer.model_max_length = _LONGEST
    # So that hidden states of wide layers are as large as those of narrow ones.
    std = min(0.1, 2 * width**-0.5)
    dtype = getattr(torch, options.dtype)
    tiny_model.make_model(folder, tokenizer, "llama", std=std, dtype=dtype, **shape)


def run(python: str, name: str, work: Path) -> dict[str, Any]:
    """The report of one contender, run in its own process."""
    script = Path(__file__).with_name("contenders.py")
    done = subprocess.run([python, script, name, work], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    report: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trajectories", type=Path, nargs="+")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--stretch", choices=["shared", "unrelated", "whole"], default="shared")
    parser.add_argument("--start", type=float, help="first state of every round, from 0 to 1")
    parser.add_argument("--words", type=int, default=8192, help="vocabulary size of the tokenizer")
    parser.add_argument(
        "--vocabulary", type=int, default=0, help="vocabulary size of the model, if larger"
    )
    parser.add_argument("--template", default="raw", help="text around every state")
    parser.add_argument("--rounds", type=int, default=3, help="`whole` runs as many as it needs")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument(
        "--slow-once", action="store_true", help="run the classic recipes in the first round only"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(_TOLERANCE), default="float32")
    parser.add_argument(
        "--corpus", type=int, default=217_499, help="states to estimate the time for"
    )
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    names = options.contenders.split(",")
    if options.vllm_python is None and "vllm" in names:
        names.remove("vllm")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        everything = real_states(options.trajectories)
        template = Template.load(options.template)
        make_model(
            work / "model",
            options.size,
            everything,
            options,
            template.markers(),
        )
        machine = {
            "device": options.device, "dtype": options.dtype, "template": options.template,
        }  # fmt: skip
        (work / "machine.json").write_text(json.dumps(machine))
        rounds: list[dict[str, dict[str, Any]]] = []
        for number, states in enumerate(stretches(everything, options)):
            reports = {}
            prompts = [template.prompt(state) for state in states]
            (work / "states.json").write_text(json.dumps(states))
            (work / "prompts.json").write_text(json.dumps(prompts))
            for name in names:
                if number and options.slow_once and name.startswith("classic"):
                    continue
                python = options.vllm_python if name == "vllm" else sys.executable
                reports[name] = run(python, name, work)
            check(reports, work, options.dtype)
            for name, report in reports.items():
                print(
                    f"round {number + 1}: {name}: {describe(report)}", file=sys.stderr, flush=True
                )
            rounds.append(reports)
            if options.json:
                options.json.write_text(
                    json.dumps({"options": vars(options), "rounds": rounds}, default=str)
                )
    show(rounds, names, options)


def check(reports: dict[str, dict[str, Any]], work: Path, dtype: str) -> None:
    """Compares all embeddings of a round with the unbatched reference."""
    truth = reports.get("unbatched") or run(sys.executable, "unbatched", work)
    if "failed" in truth:
        raise SystemExit(f"the unbatched reference: {truth['failed']}")
    rows = np.load(work / "unbatched.npy")
    for name, report in reports.items():
        if "failed" in report:
            continue
        relative, cosine = compare(np.load(work / f"{name}.npy"), rows)
        report["error"] = relative if dtype == "float32" else 1 - cosine
        if not report["error"] <= _TOLERANCE[dtype]:
            report["failed"] = f"differs from the reference (error {report['error']:.1e})"


def describe(report: dict[str, Any]) -> str:
    if "failed" in report:
        return f"FAILED: {report['failed']}"
    return f"{report['states'] / report['seconds']:.1f} states/s"


def sharing(rounds: list[dict[str, dict[str, Any]]]) -> str:
    """Tokens per unique token in each round, the same for all contenders, and together."""
    ran = ([r for r in each.values() if "nodes" in r] for each in rounds)
    reports = [some[0] for some in ran if some]
    if not reports:
        return "?"
    tokens, nodes = [r["tokens"] for r in reports], [r["nodes"] for r in reports]
    each = ", ".join(f"{t / n:.2f}" for t, n in zip(tokens, nodes, strict=True))
    return f"{each}; together {sum(tokens) / sum(nodes):.2f}"


def show(rounds: list[dict[str, dict[str, Any]]], names: list[str], options: Any) -> None:
    print(
        f"{options.size} {SIZES[options.size]}, {options.states} states a round ({options.stretch},"
        f" template {options.template},"
        f" tokens per unique token {sharing(rounds)}),"
        f" {len(rounds)} rounds, {options.dtype} on {where(options.device)}, torch"
        f" {torch.__version__}, transformers {transformers.__version__},"
        f" Python {platform.python_version()}"
    )
    print(
        "| contender | states/s | tokens/s | unique tokens/s | TFLOP/s | matmul peak | best matmul"
        " | peak MB | error | time / ours, by round | median | together |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    expected = ""
    for name in names:
        reports = [each[name] for each in rounds if name in each]
        failed = [report["failed"] for report in reports if "failed" in report]
        if failed:
            print(f"| {name} | {failed[0]} | | | | | | | | | | |")
            continue

        def median(key: Any, reports: list[dict[str, Any]] = reports) -> float:
            return statistics.median(key(report) for report in reports)

        pairs = [
            (each[name]["seconds"], each[_OURS]["seconds"])
            for each in rounds
            if name in each and "seconds" in each.get(_OURS, {})
        ]
        ratios = [it / ours for it, ours in pairs]
        together = sum(it for it, _ in pairs) / sum(ours for _, ours in pairs) if pairs else nan
        print(
            f"| {name} | {median(lambda r: r['states'] / r['seconds']):.1f}"
            f" | {median(lambda r: r['tokens'] / r['seconds']):,.0f}"
            f" | {median(lambda r: r['nodes'] / r['seconds']):,.0f}"
            f" | {median(lambda r: r['flops'] / r['seconds'] / 1e12):.3g}"
            f" | {median(lambda r: r['flops'] / r['seconds'] / r['sustained']):.0%}"
            f" | {median(lambda r: r['flops'] / r['seconds'] / r['best']):.0%}"
            f" | {median(lambda r: r['megabytes']):,.0f}"
            f" | {max(r['error'] for r in reports):.0e}"
            f" | {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
            f" | {statistics.median(ratios) if ratios else nan:.2f} | {together:.2f} |"
        )
        if name == _OURS:
            minutes = options.corpus / median(lambda r: r["states"] / r["seconds"]) / 60
            expected = f"estimated time for {options.corpus:,} states: {minutes:,.1f} minutes"
    print(expected)


def where(device: str) -> str:
    """The device, or the number of CPU threads."""
    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
