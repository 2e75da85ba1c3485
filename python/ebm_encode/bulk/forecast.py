"""What a corpus would cost, from its tokens: no weight is read and no model is run."""

import random
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.prompts.tokens import CHUNK_STATES, Tokens

_RECIPE_ROWS = 32
_SEED = 0


@dataclass(frozen=True)
class Forecast:
    """The cost of encoding some states.

    Attributes:
        states: Number of distinct states that have tokens.
        without_tokens: Number of those that have none; `encode` quarantines them.
        too_long: Number of those whose prompts are too long and are not cut; `encode` skips them.
        tokens: Tokens of all prompts, after any cut: what goes through without sharing.
        truncated: Prompts longer than the longest length.
        unique_nodes: Unique tokens of the corpus after prefix sharing: what no engine can skip.
        window_nodes: Tokens that packed batches of the given size put through the model.
        windows: Number of packed batches.
        padded_slots: Tokens, padding included, of the classic recipes: batches of 32 in the order
            of the text, at random, and by length.
        lengths: Upper bounds of lengths in tokens, each with the number of prompts up to it.
        seconds: Expected time at the given rate, if one was given.
    """

    states: int
    without_tokens: int
    too_long: int
    tokens: int
    truncated: int
    unique_nodes: int
    window_nodes: int
    windows: int
    padded_slots: dict[str, int]
    lengths: list[tuple[int, int]]
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


def forecast(
    tokens: Tokens,
    *,
    max_nodes: int,
    max_rows: int,
    rate: float | None = None,
    without_tokens: int = 0,
    too_long: int = 0,
) -> Forecast:
    """The cost of encoding sequences, which stand in the order of their texts.

    Batches are planned as by a bulk run, 4,096 sequences at a time.

    Args:
        tokens: The sequences.
        max_nodes: Most nodes of a packed batch.
        max_rows: Most sequences of a packed batch.
        rate: Tokens per second that the model manages.
        without_tokens: States that are skipped because they have no token.
        too_long: States that are skipped because their prompts are too long.
    """
    batches = computed = 0
    for start in range(0, len(tokens), CHUNK_STATES):
        chunk = tokens.select(range(start, min(start + CHUNK_STATES, len(tokens))))
        for batch in _core.plan_windows(chunk.ids, chunk.offsets, max_nodes, max_rows):
            some = chunk.select(batch)
            batches += 1
            computed += _core.count_nodes(some.ids, some.offsets)
    lengths = tokens.lengths
    shuffled = random.Random(_SEED).sample(range(len(lengths)), len(lengths))  # noqa: S311
    return Forecast(
        states=len(tokens),
        without_tokens=without_tokens,
        too_long=too_long,
        tokens=int(lengths.sum()),
        truncated=int((tokens.full_lengths > lengths).sum()),
        unique_nodes=_core.count_nodes(tokens.ids, tokens.offsets),
        window_nodes=computed,
        windows=batches,
        padded_slots={
            "by text": _slots(lengths),
            "at random": _slots(lengths[shuffled]),
            "by length": _slots(np.sort(lengths)),
        },
        lengths=_histogram(lengths),
        seconds=None if rate is None else computed / rate,
    )


def _slots(lengths: NDArray[np.int64]) -> int:
    """Tokens of batches of 32 in this order, each padded to its longest."""
    batches = [lengths[i : i + _RECIPE_ROWS] for i in range(0, len(lengths), _RECIPE_ROWS)]
    return sum(int(batch.max()) * len(batch) for batch in batches)


def _histogram(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Counts up to each power of two."""
    bounds = 2 ** np.arange(3, int(np.ceil(np.log2(max(int(lengths.max()), 8)))) + 1)
    below = np.searchsorted(np.sort(lengths), bounds, side="right")
    counts = np.diff(np.concatenate([[0], below]))
    return [(int(b), int(n)) for b, n in zip(bounds, counts, strict=True)]
