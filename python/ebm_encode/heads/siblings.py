"""How well scores rank the children of one parent.

Two questions, asked apart: *provable* is whether a proved child stands above those that are not
proved, *nearest* whether, among the proved children, one with the least distance stands first.
Finished proofs are no children here: a search never scores them.

A third, *decided*, is `provable` where a decision procedure has the last word, among the children
that it decided: of the states that a record holds no proof of, many are provable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.graph import FINISHED, TheoremGraph
from ebm_encode.heads.labels import NO_DISTANCE, TheoremLabels
from ebm_encode.heads.replay import walk

Question = Literal["provable", "nearest", "decided"]
QUESTIONS: tuple[Question, ...] = ("provable", "nearest")
METRICS = ("rank1", "mrr", "pairwise")

_NONE = -1  # fills the rows of a table of children


@dataclass(frozen=True)
class SiblingSets:
    """Children of one parent each, of which some are targets and some are not (S sets).

    Attributes:
        members: Numbers of the children, int64 `[S, C]`, filled with -1.
        targets: Which of them should stand first, bool `[S, C]`.
        theorem: Number of the theorem, int64 `[S]`.
        depth: Steps from the theorem's root to the parent, int64 `[S]`; -1 if not reached.
        log_prob: Log-probability of the step to each child, float64 `[S, C]`.
        before: That of the steps from the root to the parent, float64 `[S]`.
    """

    members: NDArray[np.int64]
    targets: NDArray[np.bool_]
    theorem: NDArray[np.int64]
    depth: NDArray[np.int64]
    log_prob: NDArray[np.float64]
    before: NDArray[np.float64]

    def look_up(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The children's scores, float64 `[S, C]`, of scores by number, float64 `[n]`."""
        return np.where(self.members >= 0, scores[self.members], -np.inf)

    def policy(self, exponent: float) -> NDArray[np.float64]:
        """The policy's values of the children, float64 `[S, C]`: see `replay.policy_value`."""
        depth = np.maximum(self.depth + 1, 1)[:, None].astype(np.float64)
        return (self.before[:, None] + self.log_prob) / depth**exponent

    def __len__(self) -> int:
        return len(self.members)


def sibling_sets(
    corpus: Corpus,
    theorems: Sequence[int],
    question: Question,
    usable: NDArray[np.bool_] | None = None,
) -> SiblingSets:
    """The sets of some theorems that a question can be asked of.

    Args:
        corpus: All theorems; children have its numbers.
        theorems: Which of them.
        question: Which children are targets.
        usable: Which numbers may be asked about, bool; by default all.
    """
    rows: list[_Set] = []
    for theorem in theorems:
        graph, label = corpus.graphs[theorem], corpus.labels[theorem]
        first = int(corpus.first[theorem])
        found = walk(graph)
        for parent, edges in enumerate(graph.children):
            some = [e for e in edges if _asked(graph, label, question, e.child)]
            children = np.array([edge.child for edge in some], np.int64)
            log_prob = np.array([edge.log_prob for edge in some])
            if usable is not None:
                there = usable[children + first]
                children, log_prob = children[there], log_prob[there]
            targets = _targets(graph, label, question, children)
            if targets.any() and not targets.all():
                before, depth = found.get(parent, (0.0, -1))
                rows.append(_Set(children + first, targets, theorem, depth, log_prob, before))
    return _table(rows)


def _asked(graph: TheoremGraph, label: TheoremLabels, question: Question, child: int) -> bool:
    if child == FINISHED:
        return False
    if question == "nearest":
        return bool(label.proved[child])
    return question == "provable" or child in graph.provable


def _targets(
    graph: TheoremGraph, label: TheoremLabels, question: Question, children: NDArray[np.int64]
) -> NDArray[np.bool_]:
    if question == "nearest":
        distance = label.distance[children]
        return np.asarray(distance == distance.min(initial=NO_DISTANCE))
    if question == "decided":
        return np.array([graph.provable[int(child)] for child in children], bool)
    return label.proved[children]


class _Set(NamedTuple):
    members: NDArray[np.int64]
    targets: NDArray[np.bool_]
    theorem: int
    depth: int
    log_prob: NDArray[np.float64]
    before: float


def _table(rows: list[_Set]) -> SiblingSets:
    width = max((len(row.members) for row in rows), default=0)
    members = np.full((len(rows), width), _NONE, np.int64)
    targets = np.zeros((len(rows), width), bool)
    log_prob = np.zeros((len(rows), width))
    for number, row in enumerate(rows):
        members[number, : len(row.members)] = row.members
        targets[number, : len(row.members)] = row.targets
        log_prob[number, : len(row.members)] = row.log_prob
    theorem, depth = (
        np.array(values, np.int64)
        for values in ([row.theorem for row in rows], [row.depth for row in rows])
    )
    return SiblingSets(
        members, targets, theorem, depth, log_prob, np.array([row.before for row in rows])
    )


def rank_siblings(sets: SiblingSets, values: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Each set's metrics, float64 `[S]`; children with equal scores share their places.

    `rank1` is the probability that a target stands first, `mrr` the expected reciprocal place of
    the first target, and `pairwise` the share of pairs of a target and another child in which the
    target stands higher, a tie counting a half.

    Args:
        sets: The sets.
        values: The children's scores, higher is better, float64 `[S, C]`; what fills the table does
            not count.
    """
    there = sets.members >= 0
    values = np.where(there, values, -np.inf)
    if np.isnan(values).any():
        raise ValueError("a score is not a number")
    wanted, others = sets.targets, there & ~sets.targets
    best = np.max(np.where(wanted, values, -np.inf), axis=1, keepdims=True, initial=-np.inf)
    above = (others & (values > best)).sum(axis=1)
    tied = (there & (values == best)).sum(axis=1)
    tied_targets = (wanted & (values == best)).sum(axis=1)
    higher = wanted[:, :, None] & others[:, None, :]
    wins = higher & (values[:, :, None] > values[:, None, :])
    ties = higher & (values[:, :, None] == values[:, None, :])
    pairs = (wins.sum(axis=(1, 2)) + 0.5 * ties.sum(axis=(1, 2))) / higher.sum(axis=(1, 2))
    return {
        "rank1": np.where(above > 0, 0.0, tied_targets / tied),
        "mrr": _reciprocal_place(above, tied, tied_targets),
        "pairwise": pairs,
    }


def _reciprocal_place(
    above: NDArray[np.int64], tied: NDArray[np.int64], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Expected 1 / place of the first target where tied children stand in a random order."""
    total = np.zeros(len(above))
    for place in range(1, int(tied.max(initial=0)) + 1):
        # The first target stands at this place of the tied ones.
        chance = comb(tied - place, targets - 1) / comb(tied, targets)
        total += np.where(place <= tied - targets + 1, chance / (above + place), 0.0)
    return total
