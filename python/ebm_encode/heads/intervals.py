"""Bootstrap intervals over theorems: states of one theorem are not independent."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Interval = tuple[float, float] | None

LEVEL = 0.95
_RESAMPLES = 2000


def mean_interval(
    values: NDArray[np.float64], clusters: NDArray[np.int64], seed: int
) -> tuple[float | None, Interval]:
    """The mean of some values, and its interval when whole clusters are drawn.

    Percentile bootstrap with 2,000 resamples (Efron and Tibshirani, 1993, chapter 13); the
    statistic is the sum of all values over their count.

    Args:
        values: What was measured, float64 `[n]`; NaN is no value.
        clusters: The theorem of each, int64 `[n]`.
        seed: Of the resamples.

    Returns:
        Mean and interval; the interval is `None` for fewer than two theorems, and the mean too if
        there is no value.
    """
    there = np.isfinite(values)
    values, clusters = values[there], clusters[there]
    if not len(values):
        return None, None
    _, places = np.unique(clusters, return_inverse=True)
    sums = np.bincount(places, values)
    counts = np.bincount(places).astype(np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:  # noqa: PLR2004
        return mean, None
    if np.ptp(values) == 0:
        return mean, (mean, mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of resamples that are all alike
        found = bootstrap(
            (sums, counts),
            lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    return mean, (float(low), float(high))


def mean_of_seeds(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over seeds of what was measured of the same things, float64 `[n]`."""
    return np.asarray(np.mean(np.stack([*values]), axis=0))
