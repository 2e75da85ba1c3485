"""Rankers and what they reach: among siblings, in trees, and in replayed search."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.intervals import Interval, mean_interval, mean_of_seeds
from ebm_encode.heads.mixing import Scale, scale_of
from ebm_encode.heads.replay import Ranking, replay
from ebm_encode.heads.siblings import METRICS, SiblingSets, rank_siblings

WITHIN = (8, 16, 32, 64)
DEPTHS: tuple[tuple[str, int, int], ...] = (
    ("0-1", 0, 1), ("2-3", 2, 3), ("4-7", 4, 7), ("8+", 8, 2**31),
)  # fmt: skip


@dataclass(frozen=True)
class Ranker:
    """A way to order states.

    Attributes:
        name: As in the report.
        scores: By number, higher is better, float64 `[n]`, one vector for each seed; NaN is no
            score. Empty where only the policy counts.
        weight: Of the score beside the policy, in a replayed search and among siblings.
        exponent: Of the depth in the policy's value.
        score_scale: Mean and deviation of the scores.
        policy_scale: Mean and deviation of the policy's value.
        random: Whether the scores are random: among siblings that is a tie, which counts by share.
    """

    name: str
    scores: list[NDArray[np.float64]] = field(default_factory=list)
    weight: float = 1.0
    exponent: float = 0.5
    score_scale: Scale = (0.0, 1.0)
    policy_scale: Scale = (0.0, 1.0)
    random: bool = False

    def rankings(self, corpus: Corpus, theorem: int) -> list[Ranking]:
        """How each seed orders a theorem's states."""
        numbers = corpus.numbers(theorem)
        values: list[NDArray[np.float64] | None] = [scores[numbers] for scores in self.scores]
        return [
            Ranking(some, self.weight, self.exponent, self.score_scale, self.policy_scale)
            for some in values or [None]
        ]

    def among(self, sets: SiblingSets) -> list[NDArray[np.float64]]:
        """The children's priorities for each seed, float64 `[S, C]`."""
        mean, deviation = self.policy_scale
        policy = (sets.policy(self.exponent) - mean) / deviation
        if self.random:
            return [np.zeros(sets.members.shape)]
        if not self.scores:
            return [policy if self.weight < 1 else np.zeros(sets.members.shape)]
        mean, deviation = self.score_scale
        tables = [(sets.look_up(scores) - mean) / deviation for scores in self.scores]
        if self.weight == 1:
            return tables
        return [self.weight * table + (1 - self.weight) * policy for table in tables]


def breadth_first() -> Ranker:
    """The order of discovery."""
    return Ranker("breadth_first")


def sibling_report(ranker: Ranker, sets: SiblingSets, seed: int) -> dict[str, Any]:
    """Metrics of a ranker among siblings with their intervals, and rank-1 by depth."""
    measured = sibling_values(ranker, sets)
    report: dict[str, Any] = {}
    for metric in METRICS:
        mean, interval = mean_interval(measured[metric], sets.theorem, seed)
        report[metric], report[f"{metric}_interval"] = mean, interval
    return report | _by_depth("rank1_by_depth", measured["rank1"], sets.theorem, sets.depth, seed)


def _by_depth(
    key: str,
    values: NDArray[np.float64],
    theorems: NDArray[np.int64],
    depth: NDArray[np.int64],
    seed: int,
) -> dict[str, Any]:
    """Means of values by ranges of depth, and their intervals under `KEY_interval`."""
    means: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for name, least, most in DEPTHS:
        there = (depth >= least) & (depth <= most)
        if there.any():
            means[name], intervals[name] = mean_interval(values[there], theorems[there], seed)
    return {key: means, f"{key}_interval": intervals}


def sibling_values(ranker: Ranker, sets: SiblingSets) -> dict[str, NDArray[np.float64]]:
    """Each set's metrics, the mean over seeds, float64 `[S]`."""
    seeds = [rank_siblings(sets, values) for values in ranker.among(sets)]
    return {metric: mean_of_seeds([seed[metric] for seed in seeds]) for metric in METRICS}


@dataclass(frozen=True)
class ReplayedTheorems:
    """Replayed searches of some theorems, the mean over seeds.

    Attributes:
        theorems: Their numbers, int64 `[T]`.
        expansions: To the proof, float64 `[T]`.
        within: Share of the seeds that needed at most so many, float64 `[T]`, by number.
        never_expanded: Expansions of states that the record never expanded, float64 `[T]`.
    """

    theorems: NDArray[np.int64]
    expansions: NDArray[np.float64]
    within: dict[int, NDArray[np.float64]]
    never_expanded: NDArray[np.float64]


def replay_theorems(ranker: Ranker, corpus: Corpus, theorems: Sequence[int]) -> ReplayedTheorems:
    """Replays the theorems whose root is proved; others cannot end in a proof."""
    kept: list[int] = []
    rows = []
    for theorem in theorems:
        graph, label = corpus.graphs[theorem], corpus.labels[theorem]
        if not graph.roots or not label.proved[graph.roots[0]]:
            continue
        done = [replay(graph, ranking) for ranking in ranker.rankings(corpus, theorem)]
        found = [(search.expansions, search.never_expanded) for search in done if search]
        if found:
            kept.append(theorem)
            rows.append(np.array(found, np.float64))
    within = {n: np.array([(row[:, 0] <= n).mean() for row in rows]) for n in WITHIN}
    return ReplayedTheorems(
        np.array(kept, np.int64),
        np.array([row[:, 0].mean() for row in rows]),
        within,
        np.array([row[:, 1].mean() for row in rows]),
    )


def replay_report(
    done: ReplayedTheorems, root_distance: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Figures of replayed searches with their intervals.

    Args:
        done: The searches.
        root_distance: Least steps of each theorem's proof, int64 `[T]`.
        seed: Of the bootstrap.
    """
    mean, interval = mean_interval(done.expansions, done.theorems, seed)
    report: dict[str, Any] = {"mean_expansions": mean, "mean_expansions_interval": interval}
    for limit, share in done.within.items():
        mean, interval = mean_interval(share, done.theorems, seed)
        report[f"within_{limit}"], report[f"within_{limit}_interval"] = mean, interval
    report["never_expanded"] = float(done.never_expanded.mean()) if len(done.theorems) else None
    return report | _by_depth(
        "mean_expansions_by_proof_length", done.expansions, done.theorems, root_distance, seed
    )


def tree_report(
    ranker: Ranker,
    corpus: Corpus,
    theorems: Sequence[int],
    fresh: NDArray[np.bool_],
    seed: int,
) -> dict[str, Any]:
    """AUC of proved against other states in a tree, rank correlation with distance, energy gap.

    Only fresh states count, which stand in no training theorem.

    Means over solved theorems and seeds, with intervals. The correlation is Spearman's between
    energy and graph distance over the proved states of a theorem; the gap is the mean energy of
    the others less that of the proved ones, and `gap_deviations` the same in deviations of the
    energy over all of these states.
    """
    auc: list[float] = []
    correlation: list[float] = []
    gap: list[float] = []
    where = []
    everything = np.concatenate([corpus.of(theorems), np.empty(0, np.int64)])
    spread = np.mean([scale_of(scores[everything])[1] for scores in ranker.scores])
    for theorem in theorems:
        label, numbers = corpus.labels[theorem], corpus.numbers(theorem)
        seeds = []
        for scores in ranker.scores:
            energy = -scores[numbers]
            there = np.isfinite(energy) & fresh[numbers]
            proved, distance = label.proved[there], label.distance[there]
            energy = energy[there]
            two = bool(proved.any() and not proved.all())
            varies = len({*distance[proved]}) > 1 and np.ptp(energy[proved]) > 0
            seeds.append(
                (
                    roc_auc_score(proved, -energy) if two else np.nan,
                    spearmanr(energy[proved], distance[proved])[0] if varies else np.nan,
                    energy[~proved].mean() - energy[proved].mean() if two else np.nan,
                )
            )
        for values, value in zip((auc, correlation, gap), np.mean(seeds, axis=0), strict=True):
            values.append(value)
        where.append(theorem)
    clusters = np.array(where, np.int64)
    report: dict[str, Any] = {}
    for name, values in (
        ("auc", auc), ("distance_correlation", correlation), ("energy_gap", gap),
    ):  # fmt: skip
        mean, interval = mean_interval(np.array(values), clusters, seed)
        report[name], report[f"{name}_interval"] = mean, interval
    gap_there = report["energy_gap"]
    report["gap_deviations"] = None if gap_there is None else gap_there / float(spread)
    return report
