"""Attention along paths by the Rust core, for float32 models on a CPU.

One call does a layer of a chunk: the loop over its short runs is in Rust.
"""

from functools import cache

import torch

from ebm_encode import _core
from ebm_encode.engines.masks import PathMask


def usable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: PathMask) -> bool:
    """Whether the kernel takes these, and a window says what the mask says."""
    ours = all(
        part.device.type == "cpu" and part.dtype == torch.float32 for part in (query, key, value)
    )
    return ours and mask.banded


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    mask: PathMask,
    *,
    scaling: float | None,
) -> torch.Tensor:
    """Outputs (1, N, H, E) of queries (1, H, N, D), keys (1, G, N, D) and values (1, G, N, E).

    `before` has the keys (G, P, D) and values (G, P, E) that the first run extends.
    """
    output = value.new_empty((query.shape[2], query.shape[1], value.shape[3]))
    starts, kept = mask.paths.walk
    _threads(torch.get_num_threads()).attend(
        query[0].numpy(),
        key[0].numpy(),
        value[0].numpy(),
        before[0].numpy(),
        before[1].numpy(),
        starts,
        kept,
        output.numpy(),
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        reach=mask.window,
    )
    return output[None]


@cache
def _threads(count: int) -> _core.PathAttention:
    return _core.PathAttention(count)
