"""Attention over the trie of a packed batch by torch's FlexAttention, whatever the model's mask.

One kernel does a layer: nothing is gathered, and memory goes by nodes, not by the length of paths.
Node j is visible to node i exactly if `j <= i < ends[j]` and the model's own mask function says so
for the depths of both. The kernel skips blocks of pairs of which none is visible; which those
are follows from the ends of the nodes and their depths, on the host (`block_masks.py`).

torch's function is called and not that of transformers, which rounds the normaliser of attention
sinks to the model's dtype and refuses sinks on a CPU.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ebm_encode.engines.attending import attending_by
from ebm_encode.engines.block_masks import TrieLayout, block_mask
from ebm_encode.engines.masks import UnsupportedAttentionError, require_paths

NAME = "ebm_encode_flex"
"""Under this name transformers finds the attention and mask functions of this file."""

BACKEND = "inductor"
"""The compiler of torch that makes the kernel."""

MOST_COMPILATIONS = 256
"""torch's own limit, 8, is for all models, dtypes and kinds of layers of a process together."""

_KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}
"""The kernel for long rows of queries; that for a few has other limits."""

_layout: ContextVar[TrieLayout | None] = ContextVar("layout", default=None)
"""The packed batch that this thread runs; the mask interface cannot be told otherwise."""


@contextmanager
def attending_over_trie(base: Any, layout: TrieLayout) -> Iterator[None]:
    """Lets a model attend over the trie of a packed batch."""
    token = _layout.set(layout)
    # Scales and soft caps are constants of a kernel; torch would make variables of them, which its
    # kernels do not take, once a process has met two models.
    constants = torch._dynamo.config.patch(  # noqa: SLF001
        specialize_float=True, recompile_limit=MOST_COMPILATIONS
    )
    try:
        with attending_by(base, NAME), constants:
            yield
    finally:
        _layout.reset(token)


def trie_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface: queries (1, H, N, D) to outputs (1, N, H, E).

    Raises:
        UnsupportedAttentionError: If the layer wants a bias by position, sees what comes after, or
            says itself which keys it sees.
    """
    require_paths(module, attention_mask, BlockMask, position_bias, others, is_causal=is_causal)
    # A kernel multiplies also values that a query does not see, by 0: what is not finite would
    # reach all nodes of a block. As a key it reaches those that see it, and no others.
    broken = ~value.isfinite().all(dim=3).all(dim=1)[:, None, :, None]  # (1, 1, N, 1)
    key, value = key.masked_fill(broken, torch.nan), value.masked_fill(broken, 0)
    mixed, found = _function(query.device)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=_KERNEL,
        return_aux=AuxRequest(lse=s_aux is not None),
    )
    if s_aux is not None:
        # A sink (gpt-oss) is one more key per head, learned and without value.
        share = torch.sigmoid(found.lse - s_aux.float()[None, :, None])  # (1, H, N)
        mixed = (mixed.float() * share[..., None]).to(mixed.dtype)
    return mixed.transpose(1, 2).contiguous(), None


def trie_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> BlockMask:
    """The mask interface: what each node sees, in one kind of layer.

    Raises:
        UnsupportedAttentionError: If the mask depends on more than positions.
    """
    layout = _layout.get()
    if use_vmap or q_length != kv_length or layout is None or q_length != layout.length:
        raise UnsupportedAttentionError("a mask that depends on more than positions")
    return block_mask(layout, mask_function, local_size)


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def has_kernel(device: torch.device) -> bool:
    """Whether torch makes a kernel for a device; on a CPU it makes none for masks as these."""
    return str(device.type) != "cpu"


def _function(device: torch.device) -> Any:
    """Torch's function, in the form that fits a device and the graph under way."""
    if torch.compiler.is_compiling():
        return flex_attention
    return _compiled(BACKEND) if has_kernel(device) else _with_all_scores


def _with_all_scores(*arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():  # torch warns of the scores of all pairs, which is known
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(*arguments, **options)


@cache
def _compiled(backend: Any) -> Any:
    """The kernel, compiled when it is first used, and once more for all other lengths."""
    return torch.compile(flex_attention, fullgraph=True, backend=backend)


AttentionInterface.register(NAME, trie_attention)
AttentionMaskInterface.register(NAME, trie_mask)
