"""Masks over paths: which of the keys on its path a token sees, by the model's own mask function.

transformers hands the mask of each kind of layer (all keys, a sliding window, a chunk) to a mask
interface as a function of two positions. Positions in a sequence are depths in the trie.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ebm_encode.engines.trie import Paths, RaggedPaths, Run

MOST_KEPT = 2**26
"""Most pairs of a chunk whose masks are kept from layer to layer; others are computed again."""

current_paths: ContextVar[Paths | None] = ContextVar("current_paths", default=None)
"""The chunk that this thread runs; the mask interface cannot be told otherwise."""


class UnsupportedAttentionError(RuntimeError):
    """A model's attention wants something that attention over paths does not offer."""


@dataclass
class PathMask:
    """Takes the place of a mask: which keys of its path each run sees, for one kind of layer.

    Attributes:
        paths: The chunk.
        visible: transformers' mask function, of batch, head, query position and key position.
        window: No query sees a key that many positions before it or more; `None`: no such bound.
        dtype: Dtype of the scores that masks are added to.
        device: Where the masks are needed.
    """

    paths: Paths
    visible: Callable[..., torch.Tensor]
    window: int | None
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
            if self._kept <= MOST_KEPT:
                self._made[run] = made
        return made

    @cached_property
    def ragged(self) -> RaggedPaths:
        """The paths of the chunk end to end."""
        return RaggedPaths.of(self.paths, self.device)

    @cached_property
    def banded(self) -> bool:
        """Whether a query sees just the keys of its window and itself; chunks differ."""
        return is_band(self.visible, self.paths.longest, self.window, self.device)

    def _make(self, run: Run) -> tuple[slice, torch.Tensor]:
        first, end = run.depth, run.depths.stop
        start = 0 if self.window is None else max(0, first - self.window + 1)
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=self.device)
        queries = torch.arange(first, end, device=self.device)[None, None, :, None]
        keys = torch.arange(start, end, device=self.device)[None, None, None, :]
        seen = self.visible(zero, zero, queries, keys).expand(1, 1, end - first, end - start)
        scores = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return slice(start, end), scores.masked_fill_(~seen, -torch.inf)


def require_paths(
    module: Any,
    mask: Any,
    kind: type,
    position_bias: torch.Tensor | None,
    others: dict[str, Any],
    *,
    is_causal: bool | None,
) -> None:
    """Refuses what a layer's attention wants beyond what functions of these files take.

    Sparse attention says itself which keys each query sees, in tensors that these would drop.

    Args:
        module: The layer.
        mask: What it was given as mask.
        kind: Type of the masks that the function takes.
        position_bias: A bias by position, if it wants one.
        others: All other options, by name.
        is_causal: Whether it says that no query sees what comes after.

    Raises:
        UnsupportedAttentionError: If it wants more.
    """
    unknown = {name for name, value in others.items() if isinstance(value, torch.Tensor)}
    if unknown - _SAID_ELSEWHERE:
        raise UnsupportedAttentionError(f"attention with {', '.join(sorted(unknown))}")
    both_ways = is_causal is False or getattr(module, "is_causal", True) is False
    if not isinstance(mask, kind) or position_bias is not None or both_ways:
        raise UnsupportedAttentionError("attention by other than paths")


_SAID_ELSEWHERE = {"position_ids", "cache_position", "position_embeddings"}
"""Tensors that some models hand on to their attention, which has used them already."""


def is_band(
    visible: Callable[..., torch.Tensor], longest: int, window: int | None, device: torch.device
) -> bool:
    """Whether by a mask function a query sees just the keys of its window and itself.

    Args:
        visible: transformers' mask function, of batch, head, query position and key position.
        longest: Positions go up to this.
        window: Keys from this many positions before the query on are not seen; `None`: all are.
        device: Where numbers that the function holds may be.
    """
    try:
        # To ask a GPU would be to wait for it.
        return is_band_on(torch.device("cpu"), visible, longest, window)
    except RuntimeError:
        if device.type == "cpu":
            raise
        return is_band_on(device, visible, longest, window)  # it has numbers that are there


def is_band_on(
    device: torch.device, visible: Callable[..., torch.Tensor], longest: int, window: int | None
) -> bool:
    """As `is_band`, by the function's answers on a device; the host waits for them."""
    zero = torch.zeros(1, dtype=torch.long, device=device)
    queries = torch.arange(longest, device=device)
    reach = longest if window is None else window
    first = (queries - reach + 1).clamp(min=0)
    before, at = queries - reach, queries
    ends = visible(zero, zero, queries, first) & visible(zero, zero, queries, at)
    beyond = visible(zero, zero, queries, before) & (before >= 0)
    beyond = beyond | visible(zero, zero, queries, at + 1)
    return bool(ends.all()) and not bool(beyond.any())


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
    """The mask interface: what transformers would make a mask of is kept for each run.

    Raises:
        UnsupportedAttentionError: If the mask depends on more than positions.
    """
    paths = current_paths.get()
    if use_vmap or q_length != kv_length or paths is None:
        raise UnsupportedAttentionError("a mask that depends on more than positions")
    return PathMask(paths, mask_function, local_size, dtype, device)
