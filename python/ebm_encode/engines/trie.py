"""The token trie of a packed batch as data: runs of new tokens, their paths, chunks of both.

The unique tokens of a packed batch stand in one row, depth first. A sequence's new tokens are one
run of that row, and its path is what is left of the path before it, then the run itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.output import to_device


@dataclass(frozen=True)
class Run:
    """The new tokens of a sequence: nodes `start` to `stop`, the first of them at `depth`."""

    start: int
    stop: int
    depth: int

    @property
    def nodes(self) -> slice:
        """The run among the nodes of its packed batch."""
        return slice(self.start, self.stop)

    @property
    def depths(self) -> slice:
        """The run on its path."""
        return slice(self.depth, self.depth + self.stop - self.start)


def runs_of(trie: _core.Trie) -> list[Run]:
    """The new tokens of each sequence, which may be none."""
    starts, depths = trie.starts.tolist(), trie.kept.tolist()
    ends = zip(starts[:-1], starts[1:], depths, strict=True)
    return [Run(start, stop, depth) for start, stop, depth in ends]


class CarriedKeys:
    """Keys and values of the path between one chunk and the next, for each layer.

    Layers are told apart by the order in which they attend, since a model may use one twice.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._next = 0

    def rewind(self) -> None:
        """A chunk begins: the first layer is next."""
        self._next = 0

    def exchange(
        self, key: torch.Tensor, value: torch.Tensor, paths: "Paths"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys (G, P, D) and values (G, P, E) that a layer's chunk extends.

        Args:
            key: Those of the chunk's own nodes, (1, G, N, D); what the next chunk needs is kept.
            value: (1, G, N, E).
            paths: The chunk.
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


@dataclass(frozen=True)
class Paths:
    """The runs of a chunk, in depth-first order, none empty.

    A long run may be divided: later parts then see the keys of earlier ones.

    Attributes:
        runs: The runs; the first may extend a path that an earlier chunk computed.
        longest: Length of the longest path.
        carried: The keys and values of that earlier path, by layer.
        needed: Length of the path that the next chunk extends; 0 if there is none.
    """

    runs: list[Run]
    longest: int
    carried: CarriedKeys
    needed: int = 0

    @property
    def before(self) -> int:
        """Length of the path that was computed before."""
        return self.runs[0].depth

    @cached_property
    def walk(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First node of each run, and the number of nodes, `[R + 1]`; its depth, `[R]`."""
        starts = [*(run.start for run in self.runs), self.runs[-1].stop]
        return np.array(starts, np.int64), np.array([run.depth for run in self.runs], np.int64)

    @cached_property
    def last(self) -> tuple[int, NDArray[np.int64]]:
        """The path that the next chunk extends: how much of it is from before, then its nodes."""
        path = np.full(self.longest, -1)
        for run in self.runs:
            path[run.depths] = np.arange(run.start, run.stop)
        path = path[: self.needed]
        known = int((path < 0).sum())
        return known, path[known:]


@dataclass(frozen=True)
class RaggedPaths:
    """The runs of a chunk and their paths, end to end, as a variable-length kernel takes them.

    Attributes:
        keys: The place of each key, int64 `[K]`: first come those from before, then the nodes'.
        query_ends: Where each run begins among the nodes, and N, int32 `[R + 1]`.
        key_ends: Where each path begins among the keys, and K, int32 `[R + 1]`.
        most_queries: Length of the longest run.
        most_keys: Length of the longest path.
    """

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, paths: Paths, device: torch.device) -> "RaggedPaths":
        """Lays out the paths of a chunk."""
        path = np.arange(paths.longest)
        keys, queries, lengths = [], [0], [0]
        for run in paths.runs:
            path[run.depths] = np.arange(run.start, run.stop) + paths.before
            keys.append(path[: run.depths.stop].copy())
            queries.append(run.stop)
            lengths.append(lengths[-1] + run.depths.stop)
        return cls(
            to_device(np.concatenate(keys), device),
            to_device(np.array(queries, np.int32), device),
            to_device(np.array(lengths, np.int32), device),
            max(run.stop - run.start for run in paths.runs),
            paths.longest,
        )


def chunks_of(runs: Sequence[Run], most_nodes: int, longest_run: int) -> list[tuple[slice, Paths]]:
    """Divides the runs of a packed batch into chunks of like size.

    Args:
        runs: Those of the packed batch.
        most_nodes: Most nodes of a chunk.
        longest_run: Longer runs are divided.

    Returns:
        The nodes of each chunk among those of the batch, and its runs, numbered from the chunk's
        first node.
    """
    cuts = even_cuts(runs[-1].stop, most_nodes)
    parts: list[list[Run]] = [[] for _ in cuts]
    at = 0
    for run in runs:
        start = run.start
        while start < run.stop:
            while start >= cuts[at].stop:
                at += 1
            stop = min(start + longest_run, run.stop, cuts[at].stop)
            first = cuts[at].start
            parts[at].append(Run(start - first, stop - first, run.depth + start - run.start))
            start = stop
    carried = CarriedKeys()
    needed = [*(part[0].depth for part in parts[1:]), 0]
    return [
        (own, Paths(part, max(run.depths.stop for run in part), carried, length))
        for own, part, length in zip(cuts, parts, needed, strict=True)
    ]


def even_cuts(nodes: int, most: int) -> list[slice]:
    """Divides so many nodes into chunks of at most `most` each, of like size."""
    count = -(-nodes // most)
    bounds = [nodes * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]
