"""Merges an adapter of peft into its base model, and checks what it has saved.

    python export.py --model BASE --adapter ADAPTER --output MERGED [--check]

The sum is computed in float32 on the CPU. The saved model is loaded again: its tensors are compared
with the merged ones, and its last hidden states with those of the base with the adapter beside it.
Only a model that passes gets the name MERGED. With --check a model that is there is compared again.
Exit code 1 if something differs by more than --bound.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from ebm_encode.digests import digest_files
from ebm_encode.engines.selftest import SELF_TEST_PROMPTS
from ebm_encode.errors import EbmEncodeError, ModelError
from ebm_encode.heads.records import read_trajectories
from ebm_encode.loading.quantization import require_full_weights
from whole_folders import fresh_folder, publish

RECORD = "export.json"
SAMPLE = 32
"""Prompts whose hidden states are compared."""
LONGEST = 512
"""Tokens of such a prompt; the rest is cut."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--output", type=Path, required=True, help="folder of the merged model")
    parser.add_argument(
        "--trajectories", nargs="+", help="searches whose states are the prompts of the comparison"
    )
    parser.add_argument("--max-shard-size", default="5GB")
    parser.add_argument("--bound", type=float, default=1e-5, help="largest relative difference")
    parser.add_argument("--check", action="store_true", help="compare an output that is there")
    return parser.parse_args(arguments)


def sample(trajectories: list[str] | None) -> list[str]:
    """Prompts: distinct states at equal distances in the files, or those of the self-test."""
    if not trajectories:
        return [*SELF_TEST_PROMPTS]
    files = read_trajectories(trajectories)
    states = [*dict.fromkeys(r.state for file in files for r in file.records if r.state)]
    return states[:: max(1, len(states) // SAMPLE)][:SAMPLE]


def load(folder: Path) -> Any:
    """A model in float32 on the CPU."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def last_hidden_states(model: Any, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of each prompt, at batch size 1, float32 [T, D]."""
    with torch.inference_mode():
        return [model(ids, output_hidden_states=True).hidden_states[-1][0] for ids in prompts]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Length of the difference by the length of what is expected; infinite if it is no number."""
    if found.shape != expected.shape:
        return float("inf")
    one, other = found.double(), expected.double()
    relative = (one - other).norm() / other.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float(relative) if relative.isfinite() else float("inf")


def compare(saved: Any, merged: Any, expected: list[torch.Tensor], prompts: Any) -> dict[str, Any]:
    """The largest relative differences of a saved model, over tensors and over tokens."""
    own, other = saved.state_dict(), merged.state_dict()
    tensors = {
        name: difference(own[name], other[name]) if {name} <= own.keys() & other.keys() else 1.0
        for name in own.keys() | other.keys()
    }
    worst = max(tensors, key=lambda name: tensors[name])
    rows = [
        difference(row, wanted)
        for states, all_wanted in zip(last_hidden_states(saved, prompts), expected, strict=True)
        for row, wanted in zip(states, all_wanted, strict=True)
    ]
    return {"tensor": worst, "tensors": tensors[worst], "hidden_states": max(rows)}


def export(options: argparse.Namespace) -> dict[str, Any]:
    """Merges, saves and compares; returns the largest differences."""
    for name in ("model", "adapter", *(["output"] if options.check else [])):
        if not getattr(options, name).is_dir():
            raise ModelError(f"--{name} {getattr(options, name)}: no such folder")
    config = transformers.AutoConfig.from_pretrained(options.model)
    require_full_weights(f"--model {options.model}", config, "adapters are merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    prompts = [
        tokenizer(p, return_tensors="pt", truncation=True, max_length=LONGEST)["input_ids"]
        for p in sample(options.trajectories)
    ]
    beside = peft.PeftModel.from_pretrained(load(options.model), options.adapter).eval()
    expected = last_hidden_states(beside, prompts)
    merged = beside.merge_and_unload(safe_merge=True)
    if options.check:
        return compare(load(options.output), merged, expected, prompts)
    folder = fresh_folder(options.output)
    merged.save_pretrained(folder, max_shard_size=options.max_shard_size)
    tokenizer.save_pretrained(folder)
    found = compare(load(folder), merged, expected, prompts)
    record = {"base": digest(options.model), "adapter": digest(options.adapter)}
    (folder / RECORD).write_text(json.dumps(record, indent=2))
    if max(found["tensors"], found["hidden_states"]) <= options.bound:
        publish(folder, options.output)
    else:
        shutil.rmtree(folder)
    return found


def digest(folder: Path) -> str:
    return digest_files(sorted(file for file in folder.iterdir() if file.is_file()))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    started = time.monotonic()
    try:
        found = export(options)
    except EbmEncodeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    told = (
        f"largest relative difference of a token's last hidden state {found['hidden_states']:.1e},"
        f" of a tensor {found['tensors']:.1e} (allowed {options.bound:.0e})"
    )
    if max(found["tensors"], found["hidden_states"]) > options.bound:
        print(
            f"error: {options.output}: is not the base model with the adapter: {told}, in"
            f" {found['tensor']}\nhint: export again",
            file=sys.stderr,
        )
        return 1
    print(f"{options.output}: {told}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
