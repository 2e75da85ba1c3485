"""Attention over the trie of a window, plugged into transformers' own model code.

The tokens of a window stand in one row, and what a token may see is its path: the tokens of its
ancestors, which are not its neighbours. Because nodes come depth first, the path of a run of new
tokens is what is left of the path before it, then the run itself. So keys and values are laid in a
buffer by their depth, each run over what is there, and the queries of a run see the buffer's start
up to their own depth: nothing is gathered and no pair outside the paths is computed.

A window may go through a model in slices, one after the other. Then the first run of a slice may
stand on a path that earlier slices computed; its keys and values are carried from slice to slice.

Which of the keys on its path a token sees (all; those of a sliding window; those of a chunk) is
what the model itself says, by the mask function that transformers hands to a mask interface. It
speaks of positions in a sequence, and these are the depths.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from ebm_encode import _core
from ebm_encode.engines import kernel, varlen
from ebm_encode.engines.rows import to_device

NAME = "ebm_encode_paths"
"""Under this name transformers finds the attention and mask functions of this module."""


_MOST_KEPT = 2**26
"""Most pairs of a slice whose masks are kept from layer to layer; those beyond are made anew."""


class UnsupportedAttentionError(RuntimeError):
    """A model's attention wants something that attention over paths does not offer."""


@dataclass(frozen=True)
class Run:
    """The new tokens of a sequence: nodes `start` to `stop`, the first at depth `kept`."""

    start: int
    stop: int
    kept: int

    @property
    def nodes(self) -> slice:
        """The run among the nodes of its window."""
        return slice(self.start, self.stop)

    @property
    def depths(self) -> slice:
        """The run on its path."""
        return slice(self.kept, self.kept + self.stop - self.start)


def runs_of(trie: _core.Trie) -> list[Run]:
    """The new tokens of each sequence, which may be none."""
    starts, kept = trie.starts.tolist(), trie.kept.tolist()
    ends = zip(starts[:-1], starts[1:], kept, strict=True)
    return [Run(start, stop, depth) for start, stop, depth in ends]


@dataclass(frozen=True)
class Paths:
    """The runs of a slice, in depth-first order, none empty.

    A long run may stand as several: the later ones then see what the earlier ones laid down.

    Attributes:
        runs: The runs; the first may stand on a path that was computed before.
        longest: Length of the longest path.
        carried: The keys and values of that path, by layer.
        needed: Length of the path that the next slice stands on; 0 if there is none.
    """

    runs: list[Run]
    longest: int
    carried: "Carried"
    needed: int = 0

    @property
    def before(self) -> int:
        """Length of the path that was computed before."""
        return self.runs[0].kept

    @cached_property
    def walk(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First node of each run, and the number of nodes, `[R + 1]`; its depth, `[R]`."""
        starts = [*(run.start for run in self.runs), self.runs[-1].stop]
        return np.array(starts, np.int64), np.array([run.kept for run in self.runs], np.int64)

    @cached_property
    def last(self) -> tuple[int, NDArray[np.int64]]:
        """The path that the next slice stands on: how much of it is from before, then its nodes."""
        path = np.full(self.longest, -1)
        for run in self.runs:
            path[run.depths] = np.arange(run.start, run.stop)
        path = path[: self.needed]
        known = int((path < 0).sum())
        return known, path[known:]


class Carried:
    """Keys and values of the path between one slice and the next, for each layer.

    Layers are told apart by the order in which they attend, since a model may use one twice.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._next = 0

    def rewind(self) -> None:
        """A slice begins: the first layer is next."""
        self._next = 0

    def exchange(
        self, key: torch.Tensor, value: torch.Tensor, paths: Paths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys (G, P, D) and values (G, P, E) that a layer's slice stands on.

        Args:
            key: Those of the slice's own nodes, (1, G, N, D); what the next slice needs is kept.
            value: (1, G, N, E).
            paths: The slice.
        """
        if paths.before:
            before = self._layers[self._next]
        else:
            before = (
                key.new_empty((*key.shape[1:2], 0, key.shape[3])),
                value.new_empty((*value.shape[1:2], 0, value.shape[3])),
            )
        if paths.needed:
            known, nodes = paths.last
            places = to_device(nodes, key.device)
            kept = (
                torch.cat([old[:, :known], new[0].index_select(1, places)], dim=1)
                for old, new in zip(before, (key, value), strict=True)
            )
            del self._layers[self._next : self._next + 1]
            self._layers.insert(self._next, tuple(kept))
        self._next += 1
        return before


@dataclass
class PathMask:
    """Stands in the place of a mask: which keys of its path each run sees, for one kind of layer.

    Attributes:
        paths: The slice.
        visible: transformers' mask function, of batch, head, query position and key position.
        reach: No query sees a key that many positions before it or more; `None`: no such bound.
        dtype: Dtype of the scores that masks are added to.
        device: Where the masks are needed.
    """

    paths: Paths
    visible: Callable[..., torch.Tensor]
    reach: int | None
    dtype: torch.dtype
    device: torch.device
    _made: dict[Run, tuple[slice, torch.Tensor]] = field(default_factory=dict)
    _kept: int = 0

    def of(self, run: Run) -> tuple[slice, torch.Tensor]:
        """The depths of the keys to look at, and 0 or -inf for each pair, (1, 1, queries, keys)."""
        made = self._made.get(run)
        if made is None:
            made = self._make(run)
            self._kept += made[1].numel()
            if self._kept <= _MOST_KEPT:
                self._made[run] = made
        return made

    @cached_property
    def ragged(self) -> varlen.Ragged:
        """The paths of the slice end to end."""
        return varlen.Ragged.of(self.paths, self.device)

    @cached_property
    def banded(self) -> bool:
        """Whether a query sees just the keys from its reach to itself; chunks are not like that."""
        try:
            return self._banded_on(torch.device("cpu"))  # to ask a GPU would be to wait for it
        except RuntimeError:
            if self.device.type == "cpu":
                raise
            return self._banded_on(self.device)  # the function has numbers that are there

    def _banded_on(self, device: torch.device) -> bool:
        zero = torch.zeros(1, dtype=torch.long, device=device)
        queries = torch.arange(self.paths.longest, device=device)
        reach = self.paths.longest if self.reach is None else self.reach
        first = (queries - reach + 1).clamp(min=0)
        before, at = queries - reach, queries
        ends = self.visible(zero, zero, queries, first) & self.visible(zero, zero, queries, at)
        beyond = self.visible(zero, zero, queries, before) & (before >= 0)
        beyond = beyond | self.visible(zero, zero, queries, at + 1)
        return bool(ends.all()) and not bool(beyond.any())

    def _make(self, run: Run) -> tuple[slice, torch.Tensor]:
        first, end = run.kept, run.depths.stop
        start = 0 if self.reach is None else max(0, first - self.reach + 1)
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=self.device)
        queries = torch.arange(first, end, device=self.device)[None, None, :, None]
        keys = torch.arange(start, end, device=self.device)[None, None, None, :]
        seen = self.visible(zero, zero, queries, keys).expand(1, 1, end - first, end - start)
        scores = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return slice(start, end), scores.masked_fill_(~seen, -torch.inf)


_window: ContextVar[Paths | None] = ContextVar("window", default=None)
"""The slice that this thread puts through a model; the mask interface cannot be told otherwise."""


@contextmanager
def attending_over_paths(base: Any) -> Iterator[Callable[[Paths], None]]:
    """Lets a model attend over paths; gives a function that says which, before each forward."""
    configs = {id(module.config): module.config for module in base.modules() if _configured(module)}
    before = {key: config._attn_implementation for key, config in configs.items()}  # noqa: SLF001
    token = _window.set(None)

    def attend_over(paths: Paths) -> None:
        paths.carried.rewind()
        _window.set(paths)

    try:
        for config in configs.values():
            config._attn_implementation = NAME  # noqa: SLF001
        yield attend_over
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]  # noqa: SLF001
        _window.reset(token)


def _configured(module: Any) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


def path_mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> PathMask:
    """The mask interface: what transformers would make a mask of is kept for each run."""
    window = _window.get()
    if use_vmap or q_length != kv_length or window is None:
        raise UnsupportedAttentionError("a mask that does not go by positions alone")
    return PathMask(window, mask_function, local_size, dtype, device)


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface: queries (1, H, N, D) to outputs (1, N, H, D).

    Raises:
        UnsupportedAttentionError: If the layer wants a bias by position, or sees what comes after.
    """
    both_ways = is_causal is False or getattr(module, "is_causal", True) is False
    if not isinstance(attention_mask, PathMask) or position_bias is not None or both_ways:
        raise UnsupportedAttentionError("attention by other than paths")
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
    # In float32 on a CPU, products by hand are up to twice as fast for the short runs of a trie. In
    # 16 bit torch's function is nearer to the truth: it does not round the scores.
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
