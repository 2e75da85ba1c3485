"""Batches as the origin draws them: a positive and its negatives of three tiers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.errors import InputError
from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.graph import FINISHED
from ebm_encode.heads.labels import EXHAUSTED, NO_DISTANCE, PROVED, UNKNOWN

NEGATIVES = 7
_TIERS = (0.3, 0.4, 0.3)  # hard, medium, easy


@dataclass(frozen=True)
class ContrastiveBatch:
    """Positives and their negatives.

    Attributes:
        states: Numbers of the states, int64 `[B, 1 + K]`, the positive in column 0.
        distance: Its remaining steps, int64 `[B]`; -1 where the labels do not say.
    """

    states: NDArray[np.int64]
    distance: torch.Tensor


@dataclass(frozen=True)
class _Pool:
    """A theorem's states."""

    positive: NDArray[np.int64]
    hard: NDArray[np.int64]  # with the same parent as any positive
    medium: NDArray[np.int64]  # the other negatives
    distance: dict[int, int]


class ContrastiveBatches:
    """Uniform over theorems with a positive, then over its positives; negatives by tier.

    A tier that lacks states gives its share to the next one: hard, medium, easy. Negatives are all
    states that are not positive: with labels from the graph also those whose status is unknown, as
    the origin has no other.

    Args:
        corpus: All theorems.
        chosen: The theorems to learn from.
        usable: States with an input row, bool over all numbers.
        batch_states: States of a batch, about.
        seed: Seed of the draws.

    Raises:
        InputError: If no state is positive, or none negative.
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
        pools = [_pool(corpus, number, usable) for number in chosen]
        self._pools = [pool for pool in pools if len(pool.positive)]
        self._negatives = np.concatenate(
            [np.empty(0, np.int64), *(np.concatenate([p.hard, p.medium]) for p in pools)]
        )
        if not self._pools or not len(self._negatives):
            raise InputError("all labels are equal: there is nothing to tell apart")
        self._size = max(1, batch_states // (1 + NEGATIVES))
        self._seed = seed

    def count(self) -> int:
        """Batches of a pass: as many positives as there are."""
        return -(-sum(len(pool.positive) for pool in self._pools) // self._size)

    def epoch(self, number: int) -> Iterator[ContrastiveBatch]:
        """The batches of one pass, in an order that seed and epoch fix."""
        random = np.random.default_rng([self._seed, 3, number])
        for _ in range(self.count()):
            rows, steps = [], []
            for pool in random.choice(len(self._pools), self._size):
                chosen = self._pools[pool]
                positive = int(random.choice(chosen.positive))
                rows.append([positive, *self._draw(chosen, random)])
                steps.append(chosen.distance[positive])
            yield ContrastiveBatch(np.array(rows, np.int64), torch.tensor(steps))

    def _draw(self, pool: _Pool, random: np.random.Generator) -> list[int]:
        hard, medium, _ = random.multinomial(NEGATIVES, _TIERS)
        if not len(pool.hard):
            hard, medium = 0, hard + medium
        if not len(pool.medium):
            medium = 0
        easy = NEGATIVES - hard - medium
        drawn = [
            random.choice(states, count)
            for states, count in ((pool.hard, hard), (pool.medium, medium), (self._negatives, easy))
            if count
        ]
        return [int(state) for state in np.concatenate(drawn)]


def _pool(corpus: Corpus, number: int, usable: NDArray[np.bool_]) -> _Pool:
    graph, labels, first = corpus.graphs[number], corpus.labels[number], int(corpus.first[number])
    there = usable[first : first + len(graph.states)]
    positive = (labels.status == PROVED) & there
    negative = np.isin(labels.status, (EXHAUSTED, UNKNOWN)) & there
    hard = np.zeros(len(graph.states), bool)
    for edges in graph.children:
        children = np.array([edge.child for edge in edges if edge.child != FINISHED], np.int64)
        if len(children) and positive[children].any():
            hard[children] = True
    hard &= negative
    steps = np.where(labels.distance == NO_DISTANCE, -1, labels.distance)
    distance = {int(n) + first: int(steps[n]) for n in np.flatnonzero(positive)}
    return _Pool(
        np.flatnonzero(positive) + first,
        np.flatnonzero(hard) + first,
        np.flatnonzero(negative & ~hard) + first,
        distance,
    )
