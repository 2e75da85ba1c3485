"""Heads that stand beside the one that is evaluated: the same training on other inputs.

Each is trained with the options that the head file records, on the same theorems, with several
seeds. They are kept beside the head, so that a second evaluation does not train them again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebm_encode.heads.material import Material, make_lesson
from ebm_encode.heads.options import HeadOptions
from ebm_encode.heads.rows import Rows, ZeroedRows
from ebm_encode.heads.trainer import HeadTrainer
from ebm_encode.heads.training import Trained, predict

ZEROED = 0.146
"""Share of zero vectors in the origin's cache."""

Told = Callable[[str, dict[str, float]], None]


@dataclass(frozen=True)
class Comparison:
    """A kind of head to train beside the evaluated one.

    Attributes:
        name: The ranker's name in the report.
        architecture: Its layers.
        rows: Its input rows by the training corpus's numbers.
    """

    name: str
    architecture: str
    rows: Rows


def zeroed_mask(count: int, seed: int) -> NDArray[np.bool_]:
    """Which of so many rows are zeros, bool `[count]`: 14.6 % of them."""
    return np.random.default_rng([seed, 5]).random(count) < ZEROED


class ComparisonHeads:
    """Trains comparison heads, or takes those that were kept.

    Args:
        material: The training corpus, split as for the head.
        options: Of the head's training.
        identity: The encoder's identity as JSON.
        seeds: Seeds of each kind.
        folder: Where trained heads are kept.
        on_epoch: Told of each epoch.
    """

    def __init__(
        self,
        material: Material,
        options: HeadOptions,
        identity: str,
        *,
        seeds: Sequence[int],
        folder: Path | None,
        on_epoch: Told | None = None,
    ) -> None:
        self._material, self._options = material, replace(options, members=1)
        self._identity, self._seeds = identity, seeds
        self._folder, self._on_epoch = folder, on_epoch

    def train(self, comparison: Comparison, *, zeroed: bool = False) -> list[Trained]:
        """The heads of one kind, one for each seed.

        Args:
            comparison: Which kind.
            zeroed: Whether each seed's rows are zeroed in different places, in training and in
                the choice of the epoch.
        """
        heads = []
        lesson = None
        for seed in self._seeds:
            if zeroed:
                mask = zeroed_mask(len(self._material.usable), seed)
                lesson = make_lesson(self._material, ZeroedRows(comparison.rows, mask))
            elif lesson is None:  # it reads all rows, which are the same for each seed
                lesson = make_lesson(self._material, comparison.rows)
            what = f"{comparison.name}-{seed}"
            trainer = HeadTrainer(
                lesson,
                self._options,
                f"{self._identity} {comparison.name}",
                folder=self._folder / what if self._folder else None,
                on_epoch=partial(self._tell, what),
            )
            heads.append(trainer.member(comparison.architecture, seed))
        return heads

    def _tell(self, what: str, _: str, epoch: dict[str, float]) -> None:
        if self._on_epoch:
            self._on_epoch(what, epoch)


def scores_of(
    heads: Sequence[Trained], rows: Rows, usable: NDArray[np.bool_]
) -> list[NDArray[np.float64]]:
    """Each head's scores by number, float64 `[n]`; NaN where there is no row."""
    numbers = np.flatnonzero(usable)
    found = []
    for trained in heads:
        scores = np.full(len(usable), np.nan)
        scores[numbers] = -predict(trained.head, rows, numbers)
        found.append(scores)
    return found
