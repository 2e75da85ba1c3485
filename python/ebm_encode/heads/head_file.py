"""Writing a head file: see docs/head-format.md. Reading is the Rust core's, `EnergyHead`."""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from ebm_encode._core import EnergyHead, Identity, write_file
from ebm_encode.errors import HeadFormatError

FORMAT, VERSION = "ebm-encode-head", "1"
SIGN = "energy: lower is better; score = -energy"

Layers = list[tuple[torch.Tensor, torch.Tensor]]

_TOLERANCE = 1e-4


def write_head(
    path: str | os.PathLike[str],
    members: Sequence[Layers],
    identity: Identity,
    score_scale: tuple[float, float],
    details: dict[str, Any],
) -> EnergyHead:
    """Writes a head file, and reads it back.

    Args:
        path: The file, which is replaced in one step.
        members: Weight `[out, in]` and bias `[out]` of each layer, for each member of the ensemble.
        identity: The encoder of the embeddings.
        score_scale: Mean and deviation of the score.
        details: Further keys of the file's metadata: `mixing`, `training`, `data`, `versions`.

    Raises:
        HeadFormatError: If the weights are not finite, or do not fit.
    """
    first = members[0]
    dims = [first[0][0].shape[1], *(len(bias) for _, bias in first)]
    head = {
        "identity": json.loads(identity.to_json()),
        "architecture": {"dims": dims, "activation": "silu", "members": len(members)},
        "sign": SIGN,
        "score_scale": {"mean": score_scale[0], "deviation": score_scale[1]},
        **details,
    }
    tensors = {
        f"member.{m}.layer.{n}.{name}": tensor.contiguous()
        for m, layers in enumerate(members)
        for n, layer in enumerate(layers)
        for name, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "head": json.dumps(head, ensure_ascii=False, allow_nan=False),
    }
    write_file(path, _in_order(save(tensors, metadata)))
    return EnergyHead.open(path)


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata in order.

    The library writes them in a random order, and the same head should give the same bytes.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8, as the format asks
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def require_same(head: EnergyHead, rows: torch.Tensor, expected: np.ndarray[Any, Any]) -> None:
    """Compares what the core computes with what training measured.

    Args:
        head: The head as it was read back.
        rows: Some embeddings, float32 `[n, dim]`.
        expected: Their energies in training, `[n]`.

    Raises:
        HeadFormatError: If they differ by more than 1e-4 of the largest energy or deviation: the
            file would not be the head that was measured.
    """
    if not len(rows):
        return
    found = head.energies(rows.numpy())
    size = max(float(np.abs(expected).max()), head.score_scale[1])
    error = float(np.abs(found - expected).max()) / size
    if not error <= _TOLERANCE:
        raise HeadFormatError(
            f"{Path(head.path)}: the head as written gives energies that differ from training's by"
            f" {error:.1e} of the largest\nhint: inputs with a mean far above their deviation lose"
            " precision when they are standardised within float32 weights"
        )
