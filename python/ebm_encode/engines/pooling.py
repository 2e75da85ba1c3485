"""One float32 embedding of each sequence of a packed batch, from the hidden states of its nodes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.output import OutputSlots, Pass, to_device
from ebm_encode.engines.trie import runs_of
from ebm_encode.options import Pooling

SEQUENCES = 256
"""Sequences that are pooled by one matmul; bounds the memory of its matrix."""


def pool(hidden: torch.Tensor, trie: _core.Trie, pooling: Pooling, slots: OutputSlots) -> Pass:
    """Pools hidden states (N, C) along each path into the slots."""
    if hidden.device.type == "cpu":
        pool_on_cpu(hidden, trie, pooling, slots)
        return Pass(slots)
    return Pass(slots, slots.start_copy(pool_by_matmul(hidden, trie, pooling)))


def pool_on_cpu(
    hidden: torch.Tensor, trie: _core.Trie, pooling: Pooling, slots: OutputSlots
) -> None:
    """Writes the mean along each path, summed in float32, or its last hidden state."""
    if pooling == "last":
        for slot, leaf in zip(slots.tensors, trie.leaves.tolist(), strict=True):
            slot.copy_(hidden[leaf])
        return
    runs = runs_of(trie)
    longest = max(run.depths.stop for run in runs)
    # Each run overwrites the suffix of the path before it.
    path = hidden.new_empty((longest, hidden.shape[1]), dtype=torch.float32)
    for slot, run in zip(slots.tensors, runs, strict=True):
        path[run.depths] = hidden[run.nodes]
        torch.mean(path[: run.depths.stop], dim=0, out=slot)


def pool_by_matmul(hidden: torch.Tensor, trie: _core.Trie, pooling: Pooling) -> torch.Tensor:
    """The pooled states, (N, C) to float32 (S, C), with few operations for a device to start.

    Means are matmuls with a 0/1 matrix. Should the host allow it TF32, 16-bit values pass through
    that unchanged. What is not finite is kept out of the matmuls, where it would spoil the
    embeddings of all paths, and put into its own.
    """
    device = hidden.device
    leaves, ends = to_device(trie.leaves, device), to_device(trie.ends, device)
    if pooling == "last":
        return hidden[leaves].float()
    lengths = to_device(trie.depths, device)[leaves] + 1
    nodes = torch.arange(hidden.shape[0], device=device)
    values = hidden.float()
    broken = ~values.isfinite().all(dim=1)  # (N,)
    values = values.masked_fill(broken[:, None], 0)
    pooled = torch.empty((len(leaves), hidden.shape[1]), dtype=torch.float32, device=device)
    for part in range(0, len(leaves), SEQUENCES):
        own = leaves[part : part + SEQUENCES, None]  # (S, 1)
        on_path = (nodes[None, :] <= own) & (own < ends[None, :])  # (S, N)
        means = pooled[part : part + SEQUENCES]
        torch.mm(on_path.float(), values, out=means)
        means.masked_fill_((on_path & broken[None, :]).any(dim=1)[:, None], torch.nan)
    return pooled.div_(lengths[:, None])


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
