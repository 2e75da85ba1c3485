"""Quantised weights as they are held: unpacked, with their scales, and described.

What a loader made of a quantised checkpoint on one machine is part of an encoder's identity.
"""

import logging
from typing import Any

import torch

from ebm_encode.errors import ModelError
from ebm_encode.loading.quantization import Quantized, dtype_name, settings_of

log = logging.getLogger(__name__)


def unpack(whole: Any) -> None:
    """Unpacks weights that would be unpacked before the first pass of the whole model.

    compressed-tensors does so, and here only the part without the head runs.
    """
    if hasattr(whole, "ct_decompress_hook"):
        whole.hf_quantizer.compressor.decompress_model(whole)


def decision(
    name: str, quantized: Quantized | None, whole: Any, base: Any
) -> dict[str, Any] | None:
    """What the loader made of a quantised checkpoint on this machine; JSON values, or nearly.

    That is not what `config.json` says: FP8, for one, is dequantised where the hardware has none.

    Args:
        name: What the model is called in errors.
        quantized: What `require_usable` said.
        whole: The model with its head.
        base: The part of it that runs.

    Returns:
        Its settings, and the types and dtypes in memory; `None` if it is not quantised.

    Raises:
        ModelError: If weights lack scales.
    """
    decided = settings_of(whole.config)
    if quantized is not None:
        _require_scales(name, quantized.method, base, left=decided is None)
    if decided is None:
        if quantized is None:
            return None
        # transformers removes the settings of what it dequantised.
        log.warning(
            "%s: its %s weights are dequantised to %s, as this device or environment cannot compute"
            " with them as they are; the identity says so",
            *(name, quantized.method, dtype_name(base.dtype)),
        )
        decided = quantized.settings | {"dequantize": True}
    return {"settings": decided, "held_as": sorted({*map(_kind, base.state_dict().values())})}


def _require_scales(name: str, method: str, base: Any, *, left: bool) -> None:
    """Refuses weights without all of their scales, where a package takes them as they are.

    Args:
        name: What the model is called in errors.
        method: What its weights are quantised by.
        base: The part of the model that runs.
        left: Whether FP8 numbers are a fault: all should be dequantised.
    """
    bad = [
        path
        for path, module in base.named_modules()
        if _lacks_scales(module) or (left and any(map(_is_fp8, module.parameters(recurse=False))))
    ]
    if bad:
        raise ModelError(
            f"{name}: {len(bad)} of its {method} layers lack scales in its files: "
            + ", ".join(bad[:3])
        )


def _is_fp8(weight: torch.Tensor) -> bool:
    return bool(weight.is_floating_point() and weight.element_size() == 1)


def _lacks_scales(module: Any) -> bool:
    """Whether a layer of bitsandbytes does; the scales of 4 bits may be quantised themselves."""
    match type(module).__name__:
        case "Linear8bitLt":
            lacks = getattr(module.weight, "SCB", None) is None
        case "Linear4bit":
            state = getattr(module.weight, "quant_state", None)
            lacks = state is None or not (state.nested or state.absmax.is_floating_point())
        case _:
            lacks = False
    return lacks


def _kind(tensor: torch.Tensor) -> str:
    """A tensor's dtype; also its class, where it shows another dtype than it holds (torchao)."""
    own = type(tensor.data)
    return dtype_name(tensor.dtype) + ("" if own is torch.Tensor else f" ({own.__name__})")
