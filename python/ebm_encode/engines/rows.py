"""Where pooled rows go: straight into the caller's memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Some rows of a caller's array, to be written.

    Attributes:
        array: float32 `[n, dim]`, C order, writeable.
        places: Which of its rows, one per sequence.
    """

    array: NDArray[np.float32]
    places: Sequence[int]

    @classmethod
    def new(cls, count: int, dim: int) -> "Rows":
        """All rows of an array of their own."""
        return cls(np.empty((count, dim), np.float32), range(count))

    def select(self, indices: Sequence[int]) -> "Rows":
        """Those of some sequences."""
        return Rows(self.array, [self.places[i] for i in indices])

    def row(self, index: int) -> NDArray[np.float32]:
        """The row of one sequence, by reference."""
        row: NDArray[np.float32] = self.array[self.places[index]]
        return row

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Sequence[torch.Tensor]]:
        """Tensors on a device to write the rows to, one of (dim,) per sequence.

        On a CPU they are the array's own memory. From another device the rows come over together,
        on leaving.
        """
        target = torch.from_numpy(self.array)
        if device.type == "cpu":
            yield [target[place] for place in self.places]
            return
        shape = (len(self.places), self.array.shape[1])
        rows = torch.empty(shape, dtype=torch.float32, device=device)
        yield list(rows)
        bring_over(rows, target, self.places)


def bring_over(rows: torch.Tensor, target: torch.Tensor, places: Sequence[int]) -> None:
    """Copies rows to their places in host memory, in one transfer."""
    order = sorted(range(len(places)), key=places.__getitem__)
    first, last = places[order[0]], places[order[-1]]
    if last - first + 1 == len(places):  # without gaps they can go there at once
        ordered = rows[torch.tensor(order, device=rows.device)]
        target[first : last + 1].copy_(ordered)
    else:
        target[torch.tensor(places)] = rows.to(target.device)
