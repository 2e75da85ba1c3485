"""One float32 embedding of each sequence of a packed batch, from the hidden states of its nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.output import OutputSlots, Pass, to_device
from ebm_encode.engines.trie import runs_of
from ebm_encode.options import Pooling

SEQUENCES = 256
"""Sequences that are pooled by one matmul; bounds the memory of its matrix."""

NODES = 8192
"""Nodes whose hidden states are turned into float32 at a time."""


def pool(hidden: torch.Tensor, trie: _core.Trie, pooling: Pooling, slots: OutputSlots) -> Pass:
    """Pools hidden states (N, C) along each path into the slots."""
    if hidden.device.type == "cpu":
        pool_on_cpu(hidden, trie, pooling, slots)
        return Pass(slots)
    return Pass(slots, slots.start_copy(pool_by_segments(hidden, trie, pooling)))


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


def pool_by_segments(hidden: torch.Tensor, trie: _core.Trie, pooling: Pooling) -> torch.Tensor:
    """The pooled states, (N, C) to float32 (S, C), with few operations for a device to start.

    A path is a union of whole segments, stretches of nodes on the same paths. So each segment is
    summed once, in float32, and a matmul with a 0/1 matrix adds up those of each path. What is not
    finite is kept out of the matmuls, where it would spoil the embeddings of all paths, and put
    into its own.
    """
    device = hidden.device
    leaves = to_device(trie.leaves, device)
    if pooling == "last":
        return hidden[leaves].float()
    segments = Segments.of(trie)
    sums = _segment_sums(hidden, segments)  # (M, C)
    broken = ~sums.isfinite().all(dim=1)  # (M,)
    sums.masked_fill_(broken[:, None], 0)
    first, ends = to_device(segments.first, device), to_device(segments.ends, device)
    pooled = torch.empty((len(leaves), hidden.shape[1]), dtype=torch.float32, device=device)
    for part in range(0, len(leaves), SEQUENCES):
        own = leaves[part : part + SEQUENCES, None]  # (S, 1)
        on_path = (first[None, :] <= own) & (own < ends[None, :])  # (S, M)
        means = pooled[part : part + SEQUENCES]
        torch.mm(on_path.float(), sums, out=means)
        means.masked_fill_((on_path & broken[None, :]).any(dim=1)[:, None], torch.nan)
    return pooled.div_(to_device(trie.depths[trie.leaves] + 1, device)[:, None])


@dataclass(frozen=True)
class Segments:
    """Stretches of a trie's nodes, in order and without gaps, each as a whole on a path or not.

    Attributes:
        first: The first node of each, int64 `[M]`.
        ends: Where the descendants of its nodes end, int64 `[M]`.
        lengths: How many nodes it has, int64 `[M]`.
    """

    first: NDArray[np.int64]
    ends: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, trie: _core.Trie) -> "Segments":
        """The segments of a trie: they end at leaves, and where nodes have other descendants."""
        last = trie.ends[:-1] != trie.ends[1:]
        last[trie.leaves[trie.leaves < len(last)]] = True
        first = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(last) + 1])
        return cls(first, trie.ends[first], np.diff(first, append=len(trie.ends)))


def _segment_sums(hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
    """The sum of each segment, (N, C) to float32 (M, C); few nodes are in float32 at a time."""
    sums = []
    ends = segments.first + segments.lengths
    start = 0
    while start < len(ends):
        # Whole segments, at least one.
        stop = max(int(np.searchsorted(ends, segments.first[start] + NODES, "right")), start + 1)
        nodes = hidden[segments.first[start] : ends[stop - 1]].float()
        lengths = to_device(segments.lengths[start:stop], hidden.device)
        sums.append(torch.segment_reduce(nodes, "sum", lengths=lengths, unsafe=True))
        start = stop
    return torch.cat(sums)


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
