"""Hidden states that cannot be those of their tokens, whatever the model.

A causal model's hidden state at a token depends only on the tokens up to it. So equal prefixes have
equal rows, and the first row depends on the first token. Rows of another prompt, or shifted by one,
have the right count and a mean whose cosine with the right one is 0.9999 or more; here they show.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ebm_encode.errors import UnsafeServerError

_TOLERANCE = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.15}
"""Relative L2 by which rounding may move a token's row; foreign rows are off by about 1."""
_MOST_UNSTABLE = 0.02
"""Share of compared rows that rounding may move further."""


class StructureCheck:
    """Compares rows of equal prefixes.

    Args:
        dtype: What the server computes in.
        first_row: Asks the server for the row of a prompt of one token, float32 `[dim]`.
    """

    def __init__(self, dtype: str, first_row: Callable[[int], NDArray[np.float32]]) -> None:
        self._dtype = dtype
        self._tolerance = _TOLERANCE[dtype]
        self._ask = first_row
        self._first_rows: dict[int, NDArray[np.float32]] = {}

    def check(
        self, sequences: Sequence[NDArray[np.uint32]], states: Sequence[NDArray[np.float32]]
    ) -> None:
        """Checks the replies to one request.

        Args:
            sequences: Token ids.
            states: The hidden states of each, float32 (T, C).

        Raises:
            UnsafeServerError: If rows cannot be those of their tokens.
        """
        for own in states:
            self._require_dtype(own)
        for sequence, own in zip(sequences, states, strict=True):
            known = self._first_row(int(sequence[0]))
            if _apart(own[:1], known[None])[0] > self._tolerance:
                raise UnsafeServerError(
                    f"the first row of a prompt of {len(sequence)} tokens is not that of its first"
                    " token: rows are missing or another prompt's"
                )
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
        for i, j in pairwise(order):
            self._compare(sequences[i], states[i], sequences[j], states[j])

    def _require_dtype(self, states: NDArray[np.float32]) -> None:
        """In 16 bits a state's values are numbers of that dtype, and hardly ever of the other."""
        finite = states[np.isfinite(states)]
        if self._dtype == "bfloat16":
            fits = (finite.view(np.uint32) & 0xFFFF) == 0
        elif self._dtype == "float16":
            with np.errstate(over="ignore"):
                fits = finite.astype(np.float16).astype(np.float32) == finite
        else:
            return
        if not fits.all():
            raise UnsafeServerError(
                f"its values are not of {self._dtype}: it computes in another dtype than this"
                f" encoder, or returns another one\nhint: start it with --dtype {self._dtype}"
            )

    def _first_row(self, token: int) -> NDArray[np.float32]:
        if token not in self._first_rows:
            row = self._ask(token)
            if not np.isfinite(row).all():
                raise UnsafeServerError("gave values that are not finite for a prompt of one token")
            self._first_rows[token] = row
        return self._first_rows[token]

    def _compare(
        self,
        tokens: NDArray[np.uint32],
        states: NDArray[np.float32],
        other_tokens: NDArray[np.uint32],
        other_states: NDArray[np.float32],
    ) -> None:
        shared = _shared(tokens, other_tokens)
        if not shared:
            return
        apart = _apart(states[:shared], other_states[:shared])
        wrong = int((apart > self._tolerance).sum())
        if wrong > max(1, _MOST_UNSTABLE * shared):
            raise UnsafeServerError(
                f"two prompts begin with the same {shared} tokens, and {wrong} of their rows"
                " differ: rows are another prompt's"
            )


def _shared(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> int:
    """The length of the longest common prefix."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _apart(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative L2 differences of rows; not finite ones count as equal, row checks refuse them."""
    own, other = rows.astype(np.float64), others.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.linalg.norm(own - other, axis=1) / np.linalg.norm(other, axis=1)
    return np.where(np.isfinite(apart), apart, 0.0)
