"""Training, validation and test theorems."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import InputError
from ebm_encode.heads.graph import TheoremGraph
from ebm_encode.heads.labels import TheoremLabels
from ebm_encode.heads.options import HeadOptions


@dataclass(frozen=True)
class Split:
    """Numbers of theorems, ascending; those without any proof are in none.

    Attributes:
        train: Theorems to learn from.
        validation: Theorems that choose epoch, architecture and weight.
        test: Theorems that training does not see.
    """

    train: list[int]
    validation: list[int]
    test: list[int]


def split_theorems(
    graphs: Sequence[TheoremGraph], labels: Sequence[TheoremLabels], options: HeadOptions
) -> Split:
    """Splits the solved theorems by name, in an order that the seed fixes.

    Raises:
        InputError: If there are not enough solved theorems for three parts.
    """
    solved = sorted(
        (n for n, label in enumerate(labels) if label.solved), key=lambda n: graphs[n].theorem
    )
    order = np.random.default_rng([options.seed, 1]).permutation(len(solved))
    shuffled = [solved[n] for n in order]
    parts = [max(1, round(share * len(solved))) for share in (options.validation, options.test)]
    if len(solved) < sum(parts) + 1:
        raise InputError(
            f"the trajectories have {len(solved)} solved theorems of {len(graphs)}, and at least 3"
            " are needed: to train, to choose and to test\nhint: record more searches; a theorem"
            " counts as solved where a row has is_proof_complete"
        )
    validation, test, train = np.split(np.array(shuffled), np.cumsum(parts))
    return Split(*(sorted(map(int, part)) for part in (train, validation, test)))


def not_in(
    graphs: Sequence[TheoremGraph], chosen: Sequence[int], seen: frozenset[str]
) -> list[NDArray[np.bool_]]:
    """For each chosen theorem, which of its states are not among the seen ones, bool `[n]`."""
    return [
        np.array([state not in seen for state in graphs[number].states], bool) for number in chosen
    ]


def states_of(graphs: Sequence[TheoremGraph], chosen: Sequence[int]) -> frozenset[str]:
    """All distinct states of some theorems."""
    return frozenset(state for number in chosen for state in graphs[number].states)
