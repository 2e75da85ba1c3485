"""Which states may have equal embeddings: those whose prompts are the same to the model."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import EncodingError
from ebm_encode.options import Pooling

_EQUAL = {"float32": 1e-5}
"""Embeddings of one token, once and twice, are equal if nearer than this, relative to the norm."""
_EQUAL_IN_16_BITS = 1e-2


class TokenClasses:
    """Token sequences in classes, one for all that may have equal embeddings.

    The same tokens do. Two more kinds are equal to a model that does not count positions: one token
    repeated, as attention over equal values gives that value however many there are; and at layer
    0, where a token's state is its embedding, sequences of the same tokens in other order or number
    for the mean, and with the same last token. Where only the order differs, learned positions
    change nothing: they are added to the same places. Where the length does, the model is asked,
    once.

    Args:
        layer: Which of the model's hidden states is pooled, counted from the first.
        pooling: How it is pooled.
        dtype: Name of the model's compute dtype.
        run_unbatched: The embedding of one sequence, by the reference.
    """

    def __init__(
        self,
        layer: int,
        pooling: Pooling,
        dtype: str,
        run_unbatched: Callable[[NDArray[np.uint32]], NDArray[np.float32]],
    ) -> None:
        self._layer = layer
        self._pooling = pooling
        self._equal = _EQUAL.get(dtype, _EQUAL_IN_16_BITS)
        self._run_unbatched = run_unbatched
        self._counts_positions: bool | None = None

    def same(self, left: NDArray[np.uint32], right: NDArray[np.uint32]) -> bool:
        """Whether two token sequences, uint32 `[n]` and `[m]`, may have equal embeddings."""
        return np.array_equal(left, right) or np.array_equal(self.of(left), self.of(right))

    def of(self, sequence: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """A short form of a token sequence, uint32 `[n]`, that all of its class share."""
        repeated = bool((sequence[1:] == sequence[:1]).all())
        if len(sequence) <= 1 or not (repeated or self._layer == 0):
            return sequence
        counts_positions = self._asked(sequence[:1])
        if repeated and not counts_positions:
            return sequence[:1]
        if self._layer != 0:
            return sequence
        if self._pooling == "last":
            last = sequence[-1:]
            return np.repeat(last, len(sequence)) if counts_positions else last
        ids, counts = np.unique(sequence, return_counts=True)
        return np.repeat(ids, counts if counts_positions else counts // math.gcd(*counts.tolist()))

    def _asked(self, token: NDArray[np.uint32]) -> bool:
        """Whether the model tells one token from two of it."""
        if self._counts_positions is None:
            try:
                once, twice = (self._run_unbatched(np.repeat(token, count)) for count in (1, 2))
            except EncodingError:
                return True
            far = np.linalg.norm(once - twice) > self._equal * np.linalg.norm(once)
            self._counts_positions = bool(far)
        return self._counts_positions
