"""Where pooled rows go: straight into the caller's memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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

    def landing(self, device: torch.device) -> "Landing":
        """Where a device is to write the rows."""
        return Landing(self, device)


class Arrival:
    """Rows that may still be on their way to the caller's array.

    Args:
        finish: Waits for them and puts them in their places; `None` if they are there.
    """

    def __init__(self, finish: Callable[[], None] | None = None) -> None:
        self._finish = finish

    @property
    def here(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._finish is None

    def wait(self) -> None:
        """Returns when the rows are in the caller's array."""
        if self._finish is not None:
            self._finish()
            self._finish = None


class Landing:
    """Where a batch's rows are written, and how they come from there to the caller's array.

    Attributes:
        targets: Tensors on the device, one of (dim,) per sequence; on a CPU they are the array's
            own memory.
        block: All targets in one tensor, (S, dim); `None` on a CPU, where they may lie apart.
    """

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._array = torch.from_numpy(rows.array)
        self.block: torch.Tensor | None = None
        if device.type == "cpu":
            self.targets = [self._array[place] for place in rows.places]
            return
        shape = (len(rows.places), rows.array.shape[1])
        self.block = torch.empty(shape, dtype=torch.float32, device=device)
        self.targets = list(self.block)

    def depart(self) -> Arrival:
        """All rows are written, or will be by what the device has been told to do."""
        if self.block is None:
            return Arrival()
        if self._device.type != "cuda":
            bring_over(self.block, self._array, self._rows.places)
            return Arrival()
        here, copied = _to_host(self.block)

        def finish() -> None:
            copied()
            # Tensors that were made in this mode may be written in it alone.
            with torch.inference_mode():
                bring_over(here, self._array, self._rows.places)

        return Arrival(finish)


def _to_host(block: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
    """A copy in pinned memory, and what waits for it.

    The host goes on at once; the device copies when it is that far.
    """
    pinned = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    pinned.copy_(block, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(block.device))
    return pinned, copied.synchronize


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of an array's numbers on a device; the host does not wait for it to get there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def bring_over(rows: torch.Tensor, target: torch.Tensor, places: Sequence[int]) -> None:
    """Copies rows to their places in host memory, in one transfer."""
    order = sorted(range(len(places)), key=places.__getitem__)
    first, last = places[order[0]], places[order[-1]]
    if last - first + 1 == len(places):  # without gaps they can go there at once
        ordered = rows[torch.tensor(order, device=rows.device)]
        target[first : last + 1].copy_(ordered)
    else:
        target[torch.tensor(places)] = rows.to(target.device)
