#!/usr/bin/env python3
"""BurnQED's `python/encode_embeddings.py` by its flags, over `ebm-encode encode`.

    python python/encode_embeddings.py --model-path data/models/merged/iter_3 \
        --trajectories data/trajectories/iter_0.parquet data/trajectories/iter_1.parquet \
        --output data/checkpoints/ebm/iter_4/embeddings.parquet

Further options are those of `ebm-encode encode`, such as `--states-in pantograph`. So are the
exit codes: 1 if a state has no valid embedding (unless `--allow-quarantine`), 2 for wrong arguments
or input. This file is no part of the installed package: copy it to where it is called.
"""

import argparse
import os
import sys

TEMPLATE = "deepseek-prover-v2"


def parser() -> argparse.ArgumentParser:
    """The origin's flags."""
    found = argparse.ArgumentParser(
        description="Encode the states of trajectory files into an embedding cache.",
        epilog="Further options are those of `ebm-encode encode`, such as --template (default:"
        f" {TEMPLATE}), --overlong (default: truncate), --states-in, --overwrite.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--model-path", help="Model: a folder, or a hub id")
    add("--encode-url", help="URL of `ebm-encode serve`; needs --model-path too")
    add("--trajectories", nargs="+", required=True, help="Trajectory files: Parquet, JSON lines")
    add("--output", required=True, help="Cache to write; embeddings in it are kept")
    add("--cache", help="Earlier cache of the same encoder, to take embeddings from")
    add("--batch-size", type=int, help="Most states of a forward pass (default: by tokens)")
    add("--max-length", type=int, default=2048, help="Longest prompt in tokens (default: 2048)")
    add("--checkpoint-interval", type=int, help="Save after so many states (default: 2000)")
    add("--hidden-size", type=int, help="Hidden size that the model must have")
    add(
        "--dtype",
        choices=["float16", "bfloat16", "float32"],
        help="Compute dtype (default: bfloat16; with --encode-url the server's must be given)",
    )
    return found


def command(given: argparse.Namespace, further: list[str]) -> list[str]:
    """The arguments of `ebm-encode`.

    Args:
        given: The origin's flags.
        further: Options of `ebm-encode encode`.
    """
    options = {
        "--model-path": given.model_path,
        "--output": given.output,
        "--cache": given.cache,
        "--batch-size": given.batch_size,
        "--max-length": given.max_length,
        "--checkpoint-rows": given.checkpoint_interval,
        "--dtype": given.dtype or ("bfloat16" if given.encode_url is None else None),
        "--backend": None if given.encode_url is None else "remote",
        "--server": given.encode_url,
        "--template": TEMPLATE,
        "--overlong": "truncate",
    }
    named = {option.partition("=")[0] for option in further}
    found = ["encode", "--trajectories", *given.trajectories]
    for name, value in options.items():
        if value is not None and name not in named:
            found += [name, str(value)]
    return found + further


def hidden_size(model_path: str) -> int:
    """The hidden size in a model's configuration."""
    from transformers import AutoConfig  # noqa: PLC0415  (slow, and seldom needed)

    return int(AutoConfig.from_pretrained(model_path).get_text_config().hidden_size)


def main() -> None:
    """Runs `ebm-encode encode` in place of this process."""
    flags = parser()
    given, further = flags.parse_known_args()
    if given.model_path is None:
        flags.error(
            "--model-path is needed, with --encode-url too: a server's embeddings are compared"
            " with the model\nhint: --model-path MODEL, the one that the server has"
        )
    if given.hidden_size is not None and hidden_size(given.model_path) != given.hidden_size:
        flags.error(
            f"--hidden-size {given.hidden_size}: {given.model_path} has"
            f" {hidden_size(given.model_path)}\nhint: is it the right model?"
        )
    arguments = [sys.executable, "-P", "-m", "ebm_encode", *command(given, further)]
    os.execv(sys.executable, arguments)  # noqa: S606


if __name__ == "__main__":
    main()
