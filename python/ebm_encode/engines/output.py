"""Where embeddings go, the caller's memory, and the pass that is writing them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.errors import EncodingError


@dataclass(frozen=True)
class OutputSlots:
    """Rows of a caller's array, one for each sequence's embedding.

    Attributes:
        array: float32 `[n, dim]`, C order, writeable.
        places: Which of its rows, one per sequence.
    """

    array: NDArray[np.float32]
    places: Sequence[int]

    @classmethod
    def new(cls, count: int, dim: int) -> "OutputSlots":
        """All rows of a new array."""
        return cls(np.empty((count, dim), np.float32), range(count))

    def select(self, indices: Sequence[int]) -> "OutputSlots":
        """Those of some sequences."""
        return OutputSlots(self.array, [self.places[i] for i in indices])

    def slot(self, index: int) -> NDArray[np.float32]:
        """The slot of one sequence, float32 `[dim]`, by reference."""
        slot: NDArray[np.float32] = self.array[self.places[index]]
        return slot

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The slots as CPU tensors, (dim,) each, over the array's own memory."""
        whole = torch.from_numpy(self.array)
        return [whole[place] for place in self.places]

    def start_copy(self, embeddings: torch.Tensor) -> Callable[[], None] | None:
        """Starts the copy of embeddings from a device to their slots.

        Args:
            embeddings: float32 (S, dim), one per slot, on an accelerator.

        Returns:
            What waits for the copy and fills the slots; `None` if that is done.
        """
        if not copies_in_background(embeddings.device):
            scatter_to_host(embeddings, self)
            return None
        on_host, wait = copy_to_pinned(embeddings)

        def finish() -> None:
            wait()
            # Tensors that were made in inference mode may be written in that mode only.
            with torch.inference_mode():
                scatter_to_host(on_host, self)

        return finish


class Pass:
    """A forward pass under way: a future of some sequences' embeddings.

    Args:
        slots: As the attribute.
        finish: Waits for the embeddings and fills the slots; `None` if they are filled.
        indices: As the attribute; by default the places of the slots in their order.
        failed: As the attribute.
        unbatched: As the attribute.

    Attributes:
        slots: Where the embeddings go, one per sequence; they are valid once `wait` has returned.
        indices: The sequences, numbered as by the caller.
        failed: Sequences that cannot be encoded, with the reason. They have no slot here.
        unbatched: Whether this is the reference itself, at batch size 1.
        tokens_per_forward: Most tokens in one row of the model's input, as of `Engine`.
    """

    def __init__(
        self,
        slots: OutputSlots,
        finish: Callable[[], None] | None = None,
        *,
        indices: Sequence[int] | None = None,
        failed: dict[int, EncodingError] | None = None,
        unbatched: bool = False,
    ) -> None:
        self.slots = slots
        self.indices = list(range(len(slots.places)) if indices is None else indices)
        self.failed = failed or {}
        self.unbatched = unbatched
        self.tokens_per_forward = 0
        self._finish = finish

    @classmethod
    def without_embedding(cls, failed: dict[int, EncodingError]) -> "Pass":
        """Nothing but sequences that cannot be encoded."""
        return cls(OutputSlots.new(0, 0), indices=[], failed=failed)

    @property
    def done(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._finish is None

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """A copy of the embeddings, float32 `[len(indices), dim]`, not yet validated."""
        found: NDArray[np.float32] = self.slots.array[list(self.slots.places)]
        return found

    def wait(self) -> None:
        """Returns when the embeddings are in their slots."""
        if self._finish is not None:
            self._finish()
            self._finish = None


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor of an array's numbers on a device; the host does not wait for the transfer."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def copies_in_background(device: torch.device) -> bool:
    """Whether the host can continue while embeddings are copied from this device."""
    return str(device.type) == "cuda"


def copy_to_pinned(block: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
    """A copy in pinned memory, and what waits for it.

    The host continues at once; the device copies when it has finished what comes before.
    """
    pinned = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    pinned.copy_(block, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(block.device))
    return pinned, copied.synchronize


def scatter_to_host(embeddings: torch.Tensor, slots: OutputSlots) -> None:
    """Copies embeddings (S, dim) to their slots in host memory, in one transfer."""
    target, places = torch.from_numpy(slots.array), slots.places
    order = sorted(range(len(places)), key=places.__getitem__)
    first, last = places[order[0]], places[order[-1]]
    if last - first + 1 == len(places):  # without gaps they can be copied as one block
        ordered = embeddings[torch.tensor(order, device=embeddings.device)]
        target[first : last + 1].copy_(ordered)
    else:
        target[torch.tensor(places)] = embeddings.to(target.device)
