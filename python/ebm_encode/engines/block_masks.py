"""Which pairs of a packed batch's nodes see each other, as FlexAttention takes it: by blocks.

Blocks are found on the host from the ends and depths of the nodes, in time that goes by the number
of blocks and not of pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask

from ebm_encode import _core
from ebm_encode.engines.masks import is_band
from ebm_encode.engines.output import to_device

MaskFunction = Callable[..., torch.Tensor]
"""transformers' mask function, of batch, head, query position and key position."""

BLOCK = 128
"""Nodes of a block; rows of nodes are padded to a multiple of it, so that few shapes occur."""

_LEAST_BLOCKS = 2
"""A compiler makes code of its own for a length of one block."""


@dataclass(frozen=True)
class TrieLayout:
    """The nodes of a packed batch, padded to whole blocks by nodes that see just themselves.

    Attributes:
        nodes: How many there are without padding.
        ends: Where the descendants of each node end, int32 `[length]`.
        depths: Depth of each node, int32 `[length]`; that of padding is 0.
        device: Where the model is.
    """

    nodes: int
    ends: NDArray[np.int32]
    depths: NDArray[np.int32]
    device: torch.device

    @classmethod
    def of(cls, trie: _core.Trie, device: torch.device) -> "TrieLayout":
        """The layout of a trie."""
        nodes = len(trie.ids)
        length = BLOCK * max(-(-nodes // BLOCK), _LEAST_BLOCKS)
        ends = np.arange(1, length + 1, dtype=np.int32)
        depths = np.zeros(length, np.int32)
        ends[:nodes], depths[:nodes] = trie.ends, trie.depths
        return cls(nodes, ends, depths, device)

    @property
    def length(self) -> int:
        """How many nodes there are with padding."""
        return len(self.ends)

    @cached_property
    def on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ends and depths where the model is, int32 (length,) each."""
        return to_device(self.ends, self.device), to_device(self.depths, self.device)

    @cached_property
    def blocks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of which blocks of queries and keys any pair is on a path, and of which all; `[B, B]`."""
        first = np.arange(0, self.length, BLOCK)
        before = first[:, None] > first[None, :]
        ends = self.ends.reshape(-1, BLOCK)
        some = before & (ends.max(axis=1)[None, :] > first[:, None])
        every = before & (ends.min(axis=1)[None, :] >= first[:, None] + BLOCK)
        return some | np.eye(len(first), dtype=bool), every

    def lists(self, mask_function: MaskFunction, window: int | None) -> tuple[torch.Tensor, ...]:
        """The blocks of `block_lists` where the model is."""
        arrays = block_lists(self, mask_function, window)
        return tuple(to_device(array, self.device) for array in arrays)

    def within(self, window: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of which blocks any pair is within a window, and of which all; `[B, B]`."""
        depths = self.depths.reshape(-1, BLOCK)
        least, most = depths.min(axis=1), depths.max(axis=1)
        some = least[:, None] - most[None, :] < window
        return some, most[:, None] - least[None, :] < window


def block_mask(layout: TrieLayout, mask_function: MaskFunction, window: int | None) -> BlockMask:
    """What each node sees, in one kind of layer.

    Args:
        layout: The packed batch.
        mask_function: transformers' mask function, of batch, head, query position and key position.
        window: No query sees a key that many positions before it or more; `None`: no such bound.
    """
    ends, depths = layout.on_device

    def visible(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        on_path = (key <= query) & (query < ends[key])
        return on_path & mask_function(batch, head, depths[query], depths[key])

    return BlockMask.from_kv_blocks(
        *layout.lists(mask_function, window),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(layout.length, layout.length),
        compute_q_blocks=False,
    )


def block_lists(
    layout: TrieLayout, mask_function: MaskFunction, window: int | None
) -> list[NDArray[np.int32]]:
    """The blocks of keys that each block of queries sees in part, and those that it sees whole.

    Both as FlexAttention takes them: how many, int32 `[1, 1, B]`, and which, int32 `[1, 1, B, B]`.
    """
    some, every = layout.blocks
    if window is not None:
        near, all_near = layout.within(window)
        some, every = some & near, every & all_near
    longest = int(layout.depths.max()) + 1
    if not is_band(mask_function, longest, window, layout.device):
        every = np.zeros_like(every)  # chunks: each pair is asked
    return [*_listed(some & ~every), *_listed(every)]


def _listed(blocks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    counts = blocks.sum(axis=1, dtype=np.int32)
    which = np.zeros(blocks.shape, np.int32)
    rows, columns = np.nonzero(blocks)
    first = np.cumsum(counts) - counts
    which[rows, np.arange(len(rows)) - first[rows]] = columns
    return counts[None, None], which[None, None]
