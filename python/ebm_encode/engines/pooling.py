"""One float32 row of each sequence of a window, from the hidden states of its nodes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.attention import runs_of
from ebm_encode.engines.rows import Landing, to_device

_ROWS = 256
"""Sequences that are pooled by one product; bounds the memory of its matrix."""


def pool_mean(hidden: torch.Tensor, trie: _core.Trie, landing: Landing) -> None:
    """The mean along each path, summed in float32, (N, C) to S rows of (C,)."""
    if landing.block is None:
        _walk(hidden, trie, landing.targets)
    else:
        _multiply(hidden, trie, landing.block)


def pool_last(hidden: torch.Tensor, trie: _core.Trie, landing: Landing) -> None:
    """The last node of each path, (N, C) to S rows of (C,)."""
    if landing.block is None:
        for row, leaf in zip(landing.targets, trie.leaves.tolist(), strict=True):
            row.copy_(hidden[leaf])
    else:
        landing.block.copy_(hidden[to_device(trie.leaves, hidden.device)])


def along_paths(
    hidden: torch.Tensor, trie: _core.Trie, wanted: Sequence[int]
) -> list[NDArray[np.float32]]:
    """The hidden states along some paths, (N, C) to a float32 array (T, C) for each."""
    runs = runs_of(trie)
    path = np.zeros(max(run.depths.stop for run in runs), dtype=np.int64)
    found: dict[int, NDArray[np.float32]] = {}
    for i, run in enumerate(runs):
        path[run.depths] = np.arange(run.start, run.stop)
        if i in wanted:
            nodes = torch.from_numpy(path[: run.depths.stop].copy()).to(hidden.device)
            found[i] = hidden[nodes].float().cpu().numpy()
    return [found[i] for i in wanted]


def _walk(hidden: torch.Tensor, trie: _core.Trie, targets: Sequence[torch.Tensor]) -> None:
    """Lays hidden states along the path, each run over what is there, and averages."""
    runs = runs_of(trie)
    longest = max(run.depths.stop for run in runs)
    path = hidden.new_empty((longest, hidden.shape[1]), dtype=torch.float32)
    for row, run in zip(targets, runs, strict=True):
        path[run.depths] = hidden[run.nodes]
        torch.mean(path[: run.depths.stop], dim=0, out=row)


def _multiply(hidden: torch.Tensor, trie: _core.Trie, block: torch.Tensor) -> None:
    """Products with a 0/1 matrix: a GPU does them sooner than it starts an operation for each path.

    Should the host allow it TF32, 16-bit values pass through that unchanged. What is not finite is
    kept out of the products, where it would spoil the rows of all paths, and put into its own.
    """
    device = hidden.device
    leaves, ends = to_device(trie.leaves, device), to_device(trie.ends, device)
    lengths = to_device(trie.depths, device)[leaves] + 1
    nodes = torch.arange(hidden.shape[0], device=device)
    values = hidden.float()
    broken = ~values.isfinite().all(dim=1)  # (N,)
    values = values.masked_fill(broken[:, None], 0)
    for part in range(0, len(leaves), _ROWS):
        own = leaves[part : part + _ROWS, None]  # (S, 1)
        on_path = (nodes[None, :] <= own) & (own < ends[None, :])  # (S, N)
        rows = block[part : part + _ROWS]
        torch.mm(on_path.float(), values, out=rows)
        rows.masked_fill_((on_path & broken[None, :]).any(dim=1)[:, None], torch.nan)
    block.div_(lengths[:, None])
