"""Runs a session from the command line's options."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import exactness
import models
import report
import torch
import transformers
from session import Session
from steps import Steps

PARTS = ("exactness", "speed")
FULL = {
    "counts": [8192, 65536], "words": 32000, "vocabulary": 102400, "dtype": "bfloat16",
    "calls": 100, "exact_states": 24, "dtypes": list(exactness.DTYPES), "seconds": 660.0,
}  # fmt: skip
TINY = FULL | {
    "counts": [48, 192], "words": 2048, "vocabulary": 0, "dtype": "float32", "calls": 50,
    "exact_states": 4, "dtypes": ["float32"], "seconds": 300.0,
}  # fmt: skip
"""What is measured unless options say otherwise."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("output", type=Path, help="JSON file, rewritten after each step")
    add("--device", default="cuda")
    add("--size", default="7b", choices=[*models.SIZES])
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    add("--seconds", type=float, help="time for all steps together")
    add(
        "--states", type=Path, nargs="*", help="Parquet files with states (default: this project's)"
    )
    add("--counts", type=int, nargs=2, help="numbers of states of the comparisons")
    add("--dtype", choices=exactness.DTYPES, help="of the comparisons of speed")
    add("--words", type=int, help="vocabulary size of the tokenizer")
    add("--vocabulary", type=int, help="vocabulary size of the model, if larger")
    add("--template", default="deepseek-prover-v2", help="text around every state")
    add("--calls", type=int, help="calls for each size of request")
    add("--architectures", nargs="+", default=list(models.ARCHITECTURES), help="of exactness")
    add("--dtypes", nargs="+", choices=exactness.DTYPES, help="of exactness")
    add("--exact-states", type=int, help="states for each model of exactness")


def measure(options: Any) -> int:
    """Runs all steps and prints their tables; 1 if a step failed."""
    for name, value in (TINY if options.size == "tiny" else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU\nhint: `--device cpu --size tiny` tries the command")
    # A tokenizer in threads warns about the forks that a compiler makes.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    transformers.utils.logging.set_verbosity_error()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    session = Session(options.output, options.seconds)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        try:
            Steps(session, options, root).run()
            session.results["complete"] = True
        finally:
            models.remove_roomy(root)
            session.write()
            report.show(session.results)
    return int(any("error" in step for step in session.results["steps"]))
