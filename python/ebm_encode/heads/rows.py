"""Where a head's inputs come from: a cache, a cache with zeroed rows, or a matrix."""

from collections.abc import Iterator
from typing import Protocol

import blake3
import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.dataset import EmbeddingDataset

_AT_ONCE = 1 << 22  # values that are copied at a time: 16 MiB


class Rows(Protocol):
    """Input rows by number."""

    @property
    def dim(self) -> int:
        """Values of a row."""

    def take(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Copies of some rows, float32 `[n, dim]`."""


class CacheRows:
    """Embeddings of a cache, in memory or mapped; only what is asked for is copied."""

    def __init__(self, dataset: EmbeddingDataset, dim: int) -> None:
        self._dataset = dataset
        self.dim = dim

    def take(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Copies of some rows, float32 `[n, dim]`."""
        return self._dataset.batch(numbers).rows


class MatrixRows:
    """Rows of a matrix in memory, float32 `[n, dim]`."""

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        self._matrix = matrix
        self.dim = matrix.shape[1]

    def take(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Copies of some rows, float32 `[n, dim]`."""
        return torch.from_numpy(self._matrix[numbers])


class ZeroedRows:
    """Other rows, some of which are replaced by zeros: what the origin's broken cache held.

    For comparison alone. No cache with such rows can be written or opened here.

    Args:
        rows: The right rows.
        zeroed: Which are zeros, bool `[n]`.
    """

    def __init__(self, rows: Rows, zeroed: NDArray[np.bool_]) -> None:
        self._rows, self._zeroed = rows, zeroed
        self.dim = rows.dim

    def take(self, numbers: NDArray[np.int64]) -> torch.Tensor:
        """Copies of some rows, float32 `[n, dim]`."""
        rows = self._rows.take(numbers)
        rows[torch.from_numpy(self._zeroed[numbers])] = 0.0
        return rows


def chunks(numbers: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of rows, as many at a time as are 16 MiB."""
    at_once = max(1, _AT_ONCE // dim)
    return (numbers[start : start + at_once] for start in range(0, len(numbers), at_once))


def digest_rows(rows: Rows, numbers: NDArray[np.int64]) -> str:
    """Digest of some rows and their numbers, hex."""
    hasher = blake3.blake3(numbers.tobytes())
    for some in chunks(numbers, rows.dim):
        hasher.update(rows.take(some).numpy().view(np.uint8).reshape(-1))
    return hasher.hexdigest()


def moments(rows: Rows, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of some rows, float32 `[dim]` each, in one pass.

    A value that hardly varies is not scaled up to noise: no deviation is below a thousandth of the
    median one, or of 1 where that is zero.
    """
    count, mean = 0, torch.zeros(rows.dim, dtype=torch.float64)
    squares = torch.zeros(rows.dim, dtype=torch.float64)
    for some in chunks(numbers, rows.dim):
        variance, part = torch.var_mean(rows.take(some), dim=0, correction=0)
        # Chan, Golub and LeVeque (1983): moments of parts combined without cancellation.
        step = part.double() - mean
        total = count + len(some)
        squares += variance.double() * len(some) + step**2 * (count * len(some) / total)
        mean += step * (len(some) / total)
        count = total
    deviation = (squares / max(count, 1)).sqrt()
    floor = max(float(deviation.median()), 0.0) * 1e-3 or 1e-3
    return mean.float(), deviation.clamp_min(floor).float()
