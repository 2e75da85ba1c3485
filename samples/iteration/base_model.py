"""Trains the small base model of the example, from nothing, on the states of recorded searches.

    python base_model.py --output MODEL --trajectories FILE... [--steps 300]

A stand-in for the model that you would download. It learns from the theorems that `train-head`
learns from, and from no others. Interrupt it any time; the same command resumes.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # the scripts of the other demos

from demo_head import held_out
from train_model import record_of, train, training_texts
from whole_folders import publish, unfinished_name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--trajectories", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--texts", type=int, default=10_000, help="most texts; others are skipped")
    parser.add_argument("--batch", type=int, default=16, help="texts of a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at its highest")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    texts = training_texts(options.trajectories, held_out(options.trajectories))
    texts = texts[:: max(1, len(texts) // options.texts)]
    how: dict[str, Any] = {"batch": options.batch, "rate": options.rate, "ends": True}
    how["seed"] = options.seed
    if read_record(options.output) == record_of(texts, options.steps, **how):
        print(f"{options.output} is there, made of the same")
        return 0
    made = train(unfinished_name(options.output), texts, options.steps, **how)
    publish(made, options.output)
    print(f"{len(texts):,} texts, {options.steps} steps, {time.monotonic() - started:.1f} s")
    return 0


def read_record(model: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((model / "trained.json").read_text())
    except FileNotFoundError:
        return {}
    return found


if __name__ == "__main__":
    sys.exit(main())
