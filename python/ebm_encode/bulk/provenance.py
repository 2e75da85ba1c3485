"""Where a cache's rows come from: what does not change the numbers, but is worth knowing."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from typing import Any, cast

import tokenizers
import torch
import transformers

from ebm_encode import _core
from ebm_encode.data.trajectories import States
from ebm_encode.encoder import Encoder


def describe_run(encoder: Encoder, states: States, started: datetime) -> dict[str, Any]:
    """The provenance of a run that is about to finish; JSON values only."""
    finished = datetime.now(UTC)
    described = describe_encoder(encoder) | {
        "command": shlex.join(sys.argv),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - started).total_seconds(), 3),
        "sources": [{"path": str(file), "digest": digest} for file, digest in states.files.items()],
        "input": vars(states.counts),
    }
    return cast("dict[str, Any]", _printable(described))


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """What an encoder is made of and runs on, beside its identity; JSON values only."""
    model = encoder.model
    return {
        "model": model.name,
        "template": encoder.prompts.template.name,
        "engine": encoder.choice.to_json(),
        "batches": _batches(encoder),
        "attention": getattr(model.base.config, "_attn_implementation", None),
        "device": model.device_name,
        "versions": versions(),
    } | ({"commit": model.commit} if model.commit else {})


def versions() -> dict[str, str]:
    """The software that makes embeddings, and its versions."""
    return {
        "ebm_encode": _core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def _batches(encoder: Encoder) -> dict[str, Any]:
    """The most that went through the model at a time, and what was measured to find it."""
    budget, found = encoder.budget, encoder.tuning.calibration
    most = {"max_batch_tokens": budget.tokens, "batch_size": budget.sequences}
    most |= {"layers_compiled": encoder.selection.compiled}
    return most | ({} if found is None else found.to_json())


def _printable(value: Any) -> Any:
    """File names may hold bytes that are no text; JSON may not."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
