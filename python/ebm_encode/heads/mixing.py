"""The weight of the value beside the policy, chosen by replay on validation theorems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.heads.corpus import Corpus
from ebm_encode.heads.options import DEFAULT_EXPONENT, DEPTH_EXPONENTS, MIXTURE_WEIGHTS
from ebm_encode.heads.replay import Ranking, policy_values, replay

Scale = tuple[float, float]


@dataclass(frozen=True)
class Mixing:
    """How a search mixes value and policy.

    Attributes:
        weight: Of the value.
        exponent: Of the depth in the policy's value.
        policy_scale: Mean and deviation of the policy's value.
    """

    weight: float
    exponent: float
    policy_scale: Scale

    def as_dict(self) -> dict[str, Any]:
        """As a head file has it."""
        mean, deviation = self.policy_scale
        policy = {"mean": mean, "deviation": deviation, "depth_exponent": self.exponent}
        return {"weight": self.weight, "policy": policy}

    def ranking(self, values: NDArray[np.float64], value_scale: Scale) -> Ranking:
        """The ranking of one theorem's states by this mixture."""
        return Ranking(values, self.weight, self.exponent, value_scale, self.policy_scale)


def scale_of(values: Sequence[float] | NDArray[np.float64]) -> Scale:
    """Mean and deviation; where nothing varies the deviation is 1."""
    there = np.asarray(values, np.float64)
    there = there[np.isfinite(there)]
    if not len(there):
        return 0.0, 1.0
    deviation = float(there.std())
    # A policy that says the same of all steps varies by rounding alone.
    same = deviation <= 1e-9 * max(1.0, float(np.abs(there).max()))
    return float(there.mean()), 1.0 if same else deviation


def policy_scale(corpus: Corpus, theorems: Sequence[int], exponent: float) -> Scale:
    """The scale of the policy's values over the states of some theorems."""
    return scale_of([v for n in theorems for v in policy_values(corpus.graphs[n], exponent)])


def choose_mixing(
    corpus: Corpus, theorems: Sequence[int], values: NDArray[np.float64], value_scale: Scale
) -> tuple[Mixing, list[dict[str, float]]]:
    """The mixture with the fewest mean expansions on some theorems, and all that were tried.

    Of mixtures that need equally many, the one nearest to one half is taken, with the exponent
    nearest to one half.

    Args:
        corpus: All theorems.
        theorems: Those to replay.
        values: Scores by the corpus's numbers, higher is better; NaN where there is none.
        value_scale: Their mean and deviation.
    """
    if not corpus.has_policy:
        # Nothing to mix with: only the value counts.
        return Mixing(1.0, DEFAULT_EXPONENT, (0.0, 1.0)), []
    tried: list[tuple[float, Mixing]] = []
    for exponent in DEPTH_EXPONENTS:
        scale = policy_scale(corpus, theorems, exponent)
        for weight in MIXTURE_WEIGHTS:
            mixing = Mixing(weight, exponent, scale)
            done = [
                replay(corpus.graphs[n], mixing.ranking(values[corpus.numbers(n)], value_scale))
                for n in theorems
            ]
            expansions = [search.expansions for search in done if search is not None]
            tried.append((float(np.mean(expansions)) if expansions else float("inf"), mixing))
    _, best = min(
        tried, key=lambda one: (one[0], abs(one[1].weight - 0.5), abs(one[1].exponent - 0.5))
    )
    listed = [
        {"weight": m.weight, "depth_exponent": m.exponent, "mean_expansions": expansions}
        for expansions, m in tried
        if np.isfinite(expansions)
    ]
    return best, listed
