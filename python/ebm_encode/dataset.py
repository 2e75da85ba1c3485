"""A cache as training data for torch: a map-style dataset, and shuffled batches."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ebm_encode._core import EmbeddingCache, MappedCache
from ebm_encode.errors import ArgumentError


@dataclass(frozen=True)
class RowBatch:
    """Some embeddings of a dataset.

    Attributes:
        indices: Which items of the dataset, int64 `[n]`.
        rows: Their embeddings, float32 `[n, dim]`.
    """

    indices: torch.Tensor
    rows: torch.Tensor

    def pin_memory(self) -> "RowBatch":
        """The same in pinned memory; a `DataLoader` with `pin_memory=True` calls it."""
        return RowBatch(self.indices.pin_memory(), self.rows.pin_memory())


class _Rows(list[torch.Tensor]):
    """The embeddings of a batch one by one, for torch's own collation, and the batch itself."""

    def __init__(self, batch: RowBatch) -> None:
        super().__init__(batch.rows)
        self.batch = batch


class EmbeddingDataset(Dataset[torch.Tensor]):  # type: ignore[misc]  # torch is not typed here
    """Embeddings of a cache, one per state, in the order of the states.

    With a `DataLoader`, pass `collate_fn=dataset.collate`: then a batch is one `RowBatch` whose
    embeddings were copied once, by the core's threads. With torch's own collation a batch is a
    tensor float32 `[n, dim]`. Workers bring nothing, as the embeddings are in memory; spawned ones
    open the cache again by its path.

    Args:
        cache: The cache, in memory or mapped.
        states: States that all have an embedding; by default all of the cache's.

    Raises:
        UnknownStateError: If the cache lacks states; lists some.
    """

    def __init__(
        self, cache: EmbeddingCache | MappedCache, states: Sequence[str] | None = None
    ) -> None:
        if isinstance(states, str):
            raise ArgumentError("states is one string, expected a sequence of strings")
        self._cache = cache
        self._rows = (
            np.arange(len(cache), dtype=np.int64)
            if states is None
            else cache.positions(list(states))
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Copies of embeddings: float32 `[dim]` for a number, `[n, dim]` for `n` numbers.

        Raises:
            IndexError: If there is no such item.
            ArgumentError: As for `batch`.
        """
        if isinstance(index, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(index):
            return self.batch(index).rows
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self._gather(self._rows[[index]], pin_memory=False)[0]

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        """A batch in one copy; a `DataLoader` calls this with the indices of a batch."""
        return _Rows(self.batch(indices))

    @staticmethod
    def collate(batch: Any) -> Any:
        """A batch of a `DataLoader` as a `RowBatch`: pass it as `collate_fn`."""
        return batch.batch if isinstance(batch, _Rows) else batch

    def batch(self, indices: Any, *, pin_memory: bool = False) -> RowBatch:
        """The embeddings of some items.

        Args:
            indices: Integers `[n]`, a list, numpy or torch; or a mask, bool `[len(dataset)]`, which
                selects the items where it is true.
            pin_memory: Whether they are written straight into page-locked memory, from which an
                accelerator takes them without waiting.

        Raises:
            ArgumentError: If `indices` is something else.
            IndexError: If there is no such item.
        """
        chosen = self._chosen(indices)
        rows = self._gather(self._rows[chosen], pin_memory=pin_memory)
        return RowBatch(torch.from_numpy(chosen), rows)

    def _chosen(self, indices: Any) -> NDArray[np.int64]:
        """Numbers of items, int64 `[n]`, in new memory."""
        given = np.asarray(indices)
        if given.ndim != 1:
            raise ArgumentError(f"indices have shape {list(given.shape)}, expected [n]")
        if given.dtype == np.bool_:
            if len(given) != len(self):
                raise ArgumentError(f"a mask of {len(given)} for a dataset of {len(self)} items")
            return np.flatnonzero(given)
        if len(given) and not np.issubdtype(given.dtype, np.integer):
            raise ArgumentError(f"indices are {given.dtype}, expected integers or a mask of bool")
        wrong = (given < -len(self)) | (given >= len(self))
        if wrong.any():
            raise IndexError(f"item {given[wrong][0]} of {len(self)}")
        return given.astype(np.int64)

    def shuffled_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        drop_last: bool = False,
        pin_memory: bool = False,
    ) -> Iterator[RowBatch]:
        """All items once, in an order that seed and epoch fix.

        Args:
            batch_size: Embeddings of a batch.
            seed: Seed of the order.
            epoch: Number of the pass over the data; each has another order.
            drop_last: Whether to skip a last batch that is not full.
            pin_memory: Whether they are written into page-locked memory.

        Raises:
            ArgumentError: If `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size {batch_size}: must be at least 1")
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        stop = len(order) - len(order) % batch_size if drop_last else len(order)
        return (
            self.batch(order[start : start + batch_size], pin_memory=pin_memory)
            for start in range(0, stop, batch_size)
        )

    def _gather(self, rows: np.ndarray[Any, np.dtype[np.int64]], *, pin_memory: bool) -> Any:
        out = torch.empty((len(rows), self._cache.dim), pin_memory=pin_memory)
        self._cache.gather_rows(rows, out.numpy())
        return out
