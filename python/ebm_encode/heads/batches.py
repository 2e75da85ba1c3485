"""Batches of training states: children of the same parents, and pairs within one tree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.graph import FINISHED
from ebm_encode.heads.labels import NO_DISTANCE

_CHUNK_STATES = 64  # states of a tree that stand in one batch together, about
_PARTNERS = 8  # pairs that are tried for a state


@dataclass(frozen=True)
class Batch:
    """Some states (N), and what the loss asks of them.

    Attributes:
        states: Their numbers, int64 `[N]`; each once.
        groups: Open children of one parent each, as places in the batch, int64 `[G, C]`, filled
            with -1; in each some children are proved and some are not.
        targets: Which of them are proved, bool `[G, C]`.
        nearer: Places of states that are nearer to the end of a proof than their partner in
            `farther`, a state of the same tree, int64 `[P]`.
        farther: Those partners, int64 `[P]`.
        distance: Steps to the end of a proof, int64 `[N]`; -1 where that is not known.
    """

    states: NDArray[np.int64]
    groups: torch.Tensor
    targets: torch.Tensor
    nearer: torch.Tensor
    farther: torch.Tensor
    distance: torch.Tensor


@dataclass(frozen=True)
class _Tree:
    """A solved theorem: open children by parent, and each state's distance."""

    groups: list[NDArray[np.int64]]
    proved: NDArray[np.bool_]  # of all states by their own numbers
    distance: NDArray[np.int64]  # the same; NO_DISTANCE where it is not known
    first: int


_Chunk = tuple[_Tree, list[NDArray[np.int64]]]
"""Some groups of a tree."""


class SiblingBatches:
    """The batches of the sibling loss, in an order that seed and epoch fix.

    Args:
        corpus: All theorems.
        chosen: The theorems to learn from.
        usable: States with an input row, bool over all numbers.
        batch_states: States of a batch, about.
        seed: Seed of the order and of the pairs.
    """

    def __init__(
        self,
        corpus: Corpus,
        chosen: Sequence[int],
        usable: NDArray[np.bool_],
        *,
        batch_states: int,
        seed: int,
    ) -> None:
        self._trees = [_tree(corpus, number, usable) for number in chosen]
        self._batch_states, self._seed = batch_states, seed

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one pass; each parent's children once."""
        random = np.random.default_rng([self._seed, 2, number])
        for chunks in self._drawn(random):
            yield _batch(chunks, random)

    def count(self) -> int:
        """Batches of a pass before the first; those of others differ by a few."""
        return sum(1 for _ in self._drawn(np.random.default_rng([self._seed, 2, 0])))

    def _drawn(self, random: np.random.Generator) -> Iterator[list[_Chunk]]:
        """The chunks of each batch. All is drawn before the first, whatever a batch draws."""
        chunks = [(tree, chunk) for tree in self._trees for chunk in _chunks(tree.groups, random)]
        waiting: list[_Chunk] = []
        size = 0
        for place in random.permutation(len(chunks)):
            waiting.append(chunks[place])
            size += sum(map(len, chunks[place][1]))
            if size >= self._batch_states:
                yield waiting
                waiting, size = [], 0
        if waiting:
            yield waiting


def _tree(corpus: Corpus, number: int, usable: NDArray[np.bool_]) -> _Tree:
    graph, labels, first = corpus.graphs[number], corpus.labels[number], int(corpus.first[number])
    groups = []
    for edges in graph.children:
        children = np.array([e.child + first for e in edges if e.child != FINISHED], np.int64)
        children = children[usable[children]]
        if len(children):
            groups.append(children)
    return _Tree(groups, labels.proved, labels.distance.astype(np.int64), first)


def _chunks(
    groups: list[NDArray[np.int64]], random: np.random.Generator
) -> Iterator[list[NDArray[np.int64]]]:
    some: list[NDArray[np.int64]] = []
    size = 0
    for place in random.permutation(len(groups)):
        some.append(groups[place])
        size += len(groups[place])
        if size >= _CHUNK_STATES:
            yield some
            some, size = [], 0
    if some:
        yield some


def _batch(chunks: list[_Chunk], random: np.random.Generator) -> Batch:
    parts = [np.unique(np.concatenate(groups)) for _, groups in chunks]
    # Two chunks of one tree may share states; each is one row of the batch.
    states = np.unique(np.concatenate(parts))
    distance = np.empty(len(states), np.int64)
    proved = np.empty(len(states), bool)
    nearer, farther, groups = [], [], []
    for (tree, members), part in zip(chunks, parts, strict=True):
        places = np.searchsorted(states, part)
        steps = tree.distance[part - tree.first]
        distance[places], proved[places] = steps, tree.proved[part - tree.first]
        near, far = _pairs(steps, proved[places], random)
        nearer.append(places[near])
        farther.append(places[far])
        groups += [np.searchsorted(states, children) for children in members]
    mixed = [g for g in groups if proved[g].any() and not proved[g].all()]
    width = max(map(len, mixed), default=0)
    table = np.full((len(mixed), width), -1, np.int64)
    for row, children in enumerate(mixed):
        table[row, : len(children)] = children
    targets = (table >= 0) & proved[table] if mixed else np.zeros((0, 0), bool)
    return Batch(
        states,
        torch.from_numpy(table),
        torch.from_numpy(targets),
        torch.from_numpy(np.concatenate(nearer)),
        torch.from_numpy(np.concatenate(farther)),
        torch.from_numpy(np.where(distance == NO_DISTANCE, -1, distance)),
    )


def _pairs(
    steps: NDArray[np.int64], proved: NDArray[np.bool_], random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Random pairs of one tree's states whose distances differ, the nearer one first.

    A file's label may call a state proved without a distance: it is in no pair.
    """
    usable = ~proved | (steps != NO_DISTANCE)
    one = np.repeat(np.arange(len(steps)), _PARTNERS)
    other = random.integers(0, len(steps), len(one))
    clear = usable[one] & usable[other]
    ordered = clear & (steps[one] < steps[other])
    turned = clear & (steps[one] > steps[other])
    return (
        np.concatenate([one[ordered], other[turned]]),
        np.concatenate([other[ordered], one[turned]]),
    )
