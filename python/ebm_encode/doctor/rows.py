"""Names for what a server returned as the hidden states of a prompt."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEAR = 0.05
"""Relative L2 within which two rows are the same, in 16 bits too."""
NEAR_FLOAT32 = 1e-4
"""The same in float32: float16 is off by three times as much."""


def same(
    rows: NDArray[np.float32], others: NDArray[np.float32], near: float = NEAR
) -> NDArray[np.bool_]:
    """Which rows equal the others, pairwise, up to rounding."""
    apart = np.linalg.norm(rows.astype(np.float64) - others, axis=1)
    size = np.linalg.norm(others.astype(np.float64), axis=1)
    return np.asarray(apart <= near * size)


def name_rows(
    rows: NDArray[np.float32],
    own: NDArray[np.float32],
    all_known: Sequence[NDArray[np.float32]],
    near: float = NEAR,
) -> str:
    """What rows are, in words: `right` if they are those of the prompt.

    Args:
        rows: What came, float32 `[n, dim]`.
        own: The prompt's own states, float32 `[tokens, dim]`.
        all_known: The states of every prompt of the examination.
        near: Relative L2 by which rounding may move a row.
    """
    count, tokens = len(rows), len(own)
    zero = int((~rows.any(axis=1)).sum())
    if count == 0:
        return f"no rows for {tokens} tokens"
    if not np.isfinite(rows).all() or zero:
        return f"{zero} of {count} rows are zero" if zero else "values that are not finite"
    if count <= tokens and same(rows, own[-count:], near).all():
        return "right" if count == tokens else f"cut: the last {count} of {tokens} rows"
    foreign = sum(_is_foreign(row, own, all_known) for row in rows)
    if foreign:
        return f"{foreign} of {count} rows are another prompt's ({tokens} tokens were sent)"
    return f"{count} rows that are not those of its {tokens} tokens"


def _is_foreign(
    row: NDArray[np.float32], own: NDArray[np.float32], known: Sequence[NDArray[np.float32]]
) -> bool:
    def has(states: NDArray[np.float32]) -> bool:
        return bool(same(np.broadcast_to(row, states.shape), states).any())

    return not has(own) and any(has(states) for states in known if states is not own)
