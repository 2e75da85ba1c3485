"""What an encoder is made of and runs on: what changes no number, but is worth knowing."""

from typing import Any

from ebm_encode.encoder import Encoder
from ebm_encode.engines.server import ServerEngine
from ebm_encode.versions import versions


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """An encoder's model, engine, device and software, beside its identity; JSON values only."""
    model, server = encoder.model, encoder.selection.server
    return (
        {
            "model": model.name,
            "template": encoder.prompts.template.name,
            "state_format": encoder.state_format,
            "engine": encoder.choice.to_json(),
            "batches": _batches(encoder),
            "attention": getattr(model.base.config, "_attn_implementation", None),
            "device": model.device_name,
            "versions": versions(),
        }
        | ({"commit": model.commit} if model.commit else {})
        | ({"adapter": model.adapter.describe()} if model.adapter else {})
        | _backend(server)
    )


def _backend(server: ServerEngine | None) -> dict[str, Any]:
    return {"backend": {"kind": server.name} | server.describe()} if server else {}


def _batches(encoder: Encoder) -> dict[str, Any]:
    """The most that went through the model per pass, and what was measured to find it."""
    budget, found = encoder.budget, encoder.tuning.calibration
    most = {"max_batch_tokens": budget.tokens, "batch_size": budget.sequences}
    most |= {"layers_compiled": encoder.selection.compiled}
    return most | ({} if found is None else found.to_json())
