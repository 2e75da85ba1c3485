"""Attention along paths by torch's variable-length kernel, for 16-bit models on a GPU.

The kernel takes sequences of queries and of keys of different lengths, end to end, and lets the
last query of a sequence see its last key. That is a run and its path: queries are the nodes as they
stand, keys are gathered along the paths, and one call does a whole window.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad

from ebm_encode.engines.rows import to_device

if TYPE_CHECKING:
    from ebm_encode.engines.attention import PathMask, Paths


# What FlashAttention's `mha_varlen_fwd` requires, as torch has it (flash_attn/flash_api.cpp).
_MOST_WIDTH = 256
"""Widest head that the kernel takes."""
_WIDTHS = 8
"""It takes heads of a multiple of this."""


@dataclass(frozen=True)
class Ragged:
    """The runs of a slice and their paths, end to end.

    Attributes:
        keys: The place of each key, int64 `[K]`: first come those from before, then the nodes'.
        query_ends: Where each run begins among the nodes, and N, int32 `[R + 1]`.
        key_ends: Where each path begins among the keys, and K, int32 `[R + 1]`.
        most_queries: Length of the longest run.
        most_keys: Length of the longest path.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, paths: "Paths", device: torch.device) -> "Ragged":
        """Lays the paths of a slice out."""
        path = np.arange(paths.longest)
        keys, queries, lengths = [], [0], [0]
        for run in paths.runs:
            path[run.depths] = np.arange(run.start, run.stop) + paths.before
            keys.append(path[: run.depths.stop].copy())
            queries.append(run.stop)
            lengths.append(lengths[-1] + run.depths.stop)
        return cls(
            to_device(np.concatenate(keys), device),
            to_device(np.array(queries, np.int32), device),
            to_device(np.array(lengths, np.int32), device),
            max(run.stop - run.start for run in paths.runs),
            paths.longest,
        )


def usable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: "PathMask") -> bool:
    """Whether the kernel takes these, and says by a window what the mask says."""
    width = key.shape[3]
    wide = value.shape[3] <= width <= _MOST_WIDTH and width % _WIDTHS == 0
    fits = query.dtype in {torch.float16, torch.bfloat16} and wide
    return fits and has_kernel(query.device) and mask.banded


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether to try the kernel on a device: NVIDIA's from Ampere on, and any of AMD's."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    mask: "PathMask",
    *,
    scaling: float | None,
) -> torch.Tensor:
    """Outputs (1, N, H, E) of queries (1, H, N, D), keys (1, G, N, D) and values (1, G, N, E).

    `before` has the keys (G, P, D) and values (G, P, E) that the first run stands on. The kernel
    takes one width only, so narrower values (DeepSeek-V3) are widened by zeros, and outputs cut.
    """
    ragged = mask.ragged
    narrower = key.shape[3] - value.shape[3]
    whole = [
        new[0] if mask.paths.before == 0 else torch.cat([old, new[0]], dim=1)
        for old, new in zip(before, (key, value), strict=True)
    ]
    mixed: torch.Tensor = varlen_attn(
        query[0].transpose(0, 1).contiguous(),  # (N, H, D)
        whole[0].transpose(0, 1)[ragged.keys],  # (K, G, D)
        pad(whole[1], (0, narrower)).transpose(0, 1)[ragged.keys],
        ragged.query_ends,
        ragged.key_ends,
        ragged.most_queries,
        ragged.most_keys,
        scale=scaling,
        window_size=(-1 if mask.reach is None else mask.reach - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[None, ..., : value.shape[3]]
