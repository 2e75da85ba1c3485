"""Attention along paths by torch's variable-length kernel, for 16-bit models on a GPU.

The kernel takes sequences of queries and of keys of different lengths, end to end, and lets the
last query of a sequence see its last key. That is a run and its path: queries are the nodes as they
stand, keys are gathered along the paths, and one call does a whole packed batch.
"""

from functools import cache

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad

from ebm_encode.engines.masks import PathMask
from ebm_encode.loading.model import Model, text_config_of

# What FlashAttention's `mha_varlen_fwd` requires, as torch has it (flash_attn/flash_api.cpp).
_MOST_WIDTH = 256
"""Widest head that the kernel takes."""
_WIDTHS = 8
"""It takes heads of a multiple of this."""


def usable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: PathMask) -> bool:
    """Whether the kernel takes these, and a window says what the mask says."""
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


def bytes_per_path_token(model: Model) -> int | None:
    """Bytes of the keys and values that a layer gathers for one token of a path, at most.

    `None` if nothing is gathered, or the model's configuration does not say.
    """
    if model.base.dtype not in {torch.float16, torch.bfloat16}:
        return None
    config = text_config_of(model.config)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return None
    named = [getattr(config, name, None) or 0 for name in ("head_dim", "global_head_dim")]
    width = max(named) or hidden // heads
    if getattr(config, "qk_nope_head_dim", None) is not None:  # keys are made for every head
        width = config.qk_nope_head_dim + config.qk_rope_head_dim
    else:
        heads = getattr(config, "num_key_value_heads", None) or heads
    # Values are widened to the keys' width before they are gathered.
    return 2 * int(heads) * int(width) * int(model.base.dtype.itemsize)


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

    `before` has the keys (G, P, D) and values (G, P, E) that the first run extends. The kernel
    takes one width only, so narrower values (DeepSeek-V3) are widened by zeros, and outputs cut.
    """
    ragged = mask.ragged
    narrower = key.shape[3] - value.shape[3]
    whole = [
        new[0] if mask.paths.before == 0 else torch.cat([old, new[0]], dim=1)
        for old, new in zip(before, (key, value), strict=True)
    ]
    if narrower:  # torch copies also where it adds nothing
        whole[1] = pad(whole[1], (0, narrower))
    mixed: torch.Tensor = varlen_attn(
        query[0].transpose(0, 1).contiguous(),  # (N, H, D)
        whole[0].transpose(0, 1)[ragged.keys],  # (K, G, D)
        whole[1].transpose(0, 1)[ragged.keys],
        ragged.query_ends,
        ragged.key_ends,
        ragged.most_queries,
        ragged.most_keys,
        scale=scaling,
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[None, ..., : value.shape[3]]
