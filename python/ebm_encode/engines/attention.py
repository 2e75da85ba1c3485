"""Attention over the trie of a packed batch, plugged into transformers' own model code.

The tokens of a packed batch stand in one row, and what a token may see is its path: the tokens of
its ancestors, which are not its neighbours. Because nodes come depth first, keys and values are
laid in a buffer by their depth, each run over the suffix of the one before, and the queries of a
run see the buffer's start up to their own depth: nothing is gathered and no pair outside the paths
is computed.

A packed batch may go through a model in chunks. Then the first run of a chunk may extend a path
that earlier chunks computed; its keys and values are carried from chunk to chunk.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ebm_encode.engines import kernel, varlen
from ebm_encode.engines.attending import attending_by
from ebm_encode.engines.masks import (
    PathMask,
    current_paths,
    path_mask,
    require_paths,
)
from ebm_encode.engines.trie import Paths

NAME = "ebm_encode_paths"
"""Under this name transformers finds the attention and mask functions of this package."""


@contextmanager
def attending_over_paths(base: Any) -> Iterator[Callable[[Paths], None]]:
    """Lets a model attend over paths; gives a function that says which, before each forward."""
    token = current_paths.set(None)

    def attend_over(paths: Paths) -> None:
        paths.carried.rewind()
        current_paths.set(paths)

    try:
        with attending_by(base, NAME):
            yield attend_over
    finally:
        current_paths.reset(token)


def path_attention(
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
    """The attention interface: queries (1, H, N, D) to outputs (1, N, H, D).

    Raises:
        UnsupportedAttentionError: If the layer wants a bias by position, sees what comes after, or
            says itself which keys it sees.
    """
    require_paths(module, attention_mask, PathMask, position_bias, others, is_causal=is_causal)
    paths = attention_mask.paths
    before = paths.carried.exchange(key, value, paths)
    plain = softcap is None and s_aux is None
    if plain and varlen.usable(query, key, value, attention_mask):
        return varlen.attend(query, key, value, before, attention_mask, scaling=scaling), None
    if plain and kernel.usable(query, key, value, attention_mask):
        return kernel.attend(query, key, value, before, attention_mask, scaling=scaling), None
    heads, nodes = query.shape[1], query.shape[2]
    groups = heads // key.shape[1]
    keys = key.new_empty((1, heads, paths.longest, key.shape[3]))
    values = value.new_empty((1, heads, paths.longest, value.shape[3]))
    for laid, old in ((keys, before[0]), (values, before[1])):
        laid[:, :, : paths.before] = _for_all_heads(old[None], groups)
    output = value.new_empty((1, nodes, heads, value.shape[3]))
    # In float32 on a CPU, plain matmuls are up to twice as fast for the short runs of a trie. In 16
    # bits torch's function is more exact: it does not round the scores.
    fused = plain and not (query.device.type == "cpu" and query.dtype == torch.float32)
    for run in paths.runs:
        keys[:, :, run.depths] = _for_all_heads(key[:, :, run.nodes], groups)
        values[:, :, run.depths] = _for_all_heads(value[:, :, run.nodes], groups)
        depths, mask = attention_mask.of(run)
        own, seen, theirs = query[:, :, run.nodes], keys[:, :, depths], values[:, :, depths]
        if fused:
            mixed = scaled_dot_product_attention(own, seen, theirs, mask, scale=scaling)
        else:
            scores = _scores(own, seen, mask, scaling=scaling, softcap=softcap)
            mixed = _weights(scores, s_aux).to(value.dtype) @ theirs
        output[:, run.nodes] = mixed.transpose(1, 2)
    return output, None


def _for_all_heads(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """(1, heads / groups, T, D) to (1, heads, T, D): query heads of a group share keys."""
    return rows if groups == 1 else rows.repeat_interleave(groups, dim=1)


def _scores(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Masked scores of each pair, (1, H, queries, keys), soft-capped where the model says so."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None:
        heads = mask[0].expand(query.shape[1], -1, -1)
        return torch.baddbmm(heads, query[0], key[0].transpose(1, 2), alpha=scale)[None]
    scores = query @ key.transpose(2, 3) * scale
    return softcap * torch.tanh(scores / softcap) + mask


def _weights(scores: torch.Tensor, s_aux: torch.Tensor | None) -> torch.Tensor:
    """Softmax of scores. A sink (gpt-oss) is one more key per head, learned and without value."""
    if s_aux is None:
        return torch.softmax(scores, dim=-1, dtype=torch.float32)
    sinks = s_aux.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    scores = torch.cat([scores, sinks], dim=-1)
    # Rounded where the model's own code rounds, so that 16-bit experts are chosen alike.
    return torch.softmax(scores - scores.amax(dim=-1, keepdim=True), dim=-1)[..., :-1]


@cache
def stay_out_of_graphs() -> None:
    """Keeps attention a call where layers are compiled; it goes by runs, which differ each time."""
    AttentionInterface.register(NAME, torch.compiler.disable(path_attention))


AttentionInterface.register(NAME, path_attention)
AttentionMaskInterface.register(NAME, path_mask)
