"""When two ways to make the same rows agree."""

import numpy as np
from numpy.typing import NDArray

_16_BIT = ("bfloat16", "float16")

MAX_RELATIVE_ERROR = 1e-5
"""Wider rows may differ by this much from the state alone, relative to the largest value."""
MIN_COSINE = 0.9995
"""Rows in a 16-bit dtype must be at least this similar to the state alone in that dtype."""
FEW = 6
"""Up to so many tokens a mean has much of the rounding of single ones."""
MIN_COSINE_OF_FEW = 0.998
"""What takes the place of `MIN_COSINE` there. Three wrong tokens among a hundred then make up
1 - cosine of some 1e-6."""


def compare(rows: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, float]:
    """Largest `max |row - truth| / max |truth|` and smallest cosine, over float32 `[n, C]`.

    NaN where a row is not finite.
    """
    rows64, truth64 = rows.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(rows64 - truth64).max(axis=1) / np.abs(truth64).max(axis=1)
        dots = (rows64 * truth64).sum(axis=1)
        norms = np.linalg.norm(rows64, axis=1) * np.linalg.norm(truth64, axis=1)
        return float(errors.max()), float((dots / norms).min())


def all_agree(
    rows: NDArray[np.float32],
    truth: NDArray[np.float32],
    lengths: NDArray[np.int64],
    dtype: str,
) -> bool:
    """Whether every row is as near to that of its sequence alone as the dtype allows.

    Args:
        rows: float32 `[n, C]`.
        truth: Those of the sequences alone, of the same shape.
        lengths: Tokens of each sequence, `[n]`.
        dtype: Name of the compute dtype.
    """
    few = lengths <= FEW
    return all(
        agrees(*compare(rows[which], truth[which]), dtype, few=short)
        for which, short in ((few, True), (~few, False))
        if which.any()
    )


def agrees(error: float, cosine: float, dtype: str, *, few: bool = False) -> bool:
    """Whether rows are as near to the states alone as their dtype allows; never so for NaN.

    Args:
        error: The largest relative error.
        cosine: The smallest cosine.
        dtype: Name of the compute dtype.
        few: Whether the rows are those of `FEW` tokens or less.
    """
    if dtype in _16_BIT:
        return cosine >= (MIN_COSINE_OF_FEW if few else MIN_COSINE)
    return error <= MAX_RELATIVE_ERROR
