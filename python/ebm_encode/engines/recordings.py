"""Small forward passes recorded once for each length, and replayed.

Of a search's request a device may spend more time waiting for the host to start the next operation
than at work. A recorded pass (a CUDA graph) is started by one call. It reads its inputs from memory
of its own, so each request is written there first.

A recording is used only if it gives the pass's own numbers to the bit, and is faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.engines.block_masks import MaskFunction, TrieLayout, block_lists
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.output import to_device

MOST_NODES = 1024
"""Longer passes keep a device at work without it."""

REPEATED = 3
"""How often a length must have occurred before a pass of it is recorded."""

_PAYS = 1.03
"""A recording is used if it is faster by this."""

Run = Callable[[TrieLayout, torch.Tensor, torch.Tensor], torch.Tensor]
"""A forward pass: layout, token ids (1, N) and positions (1, N) to hidden states (N, C)."""


@dataclass(frozen=True)
class InPlaceLayout(TrieLayout):
    """A layout whose tensors stay where they are; other layouts of its length are written there.

    Attributes:
        ids: Token ids, int64 (1, length).
        positions: Depths, int64 (1, length).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    _ends: torch.Tensor
    _depths: torch.Tensor
    _masks: list[tuple[MaskFunction, int | None]] = field(default_factory=list)
    _lists: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    _next: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def like(cls, layout: TrieLayout, ids: NDArray[np.int64]) -> "InPlaceLayout":
        """A layout with the numbers of another one."""
        placed = [to_device(array, layout.device).clone() for array in _inputs(layout, ids)]
        whole = (layout.nodes, layout.ends, layout.depths, layout.device)
        return cls(*whole, *placed)

    @property
    def on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ends and depths where the model is, int32 (length,) each."""
        return self._ends, self._depths

    def rewind(self) -> None:
        """A pass begins: the mask of its first kind of layer is next."""
        self._next[0] = 0

    def lists(self, mask_function: MaskFunction, window: int | None) -> tuple[torch.Tensor, ...]:
        """The blocks of the next kind of layer; made by the first pass, and the same ones after."""
        at = self._next[0]
        self._next[0] += 1
        if at == len(self._lists):
            self._masks.append((mask_function, window))
            self._lists.append(super().lists(mask_function, window))
        return self._lists[at]

    def write(self, layout: TrieLayout, ids: NDArray[np.int64]) -> None:
        """Takes the numbers of another layout of this length."""
        arrays = _inputs(layout, ids)
        places = [self.ids, self.positions, self._ends, self._depths]
        for (mask_function, window), lists in zip(self._masks, self._lists, strict=True):
            arrays += block_lists(layout, mask_function, window)
            places += lists
        for place, array in zip(places, arrays, strict=True):
            place.copy_(to_device(array, self.device))


def _inputs(layout: TrieLayout, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Token ids, positions, ends and depths, as a pass reads them."""
    return [ids, layout.depths[None].astype(np.int64), layout.ends, layout.depths]


@dataclass(frozen=True)
class _Recording:
    """A recorded pass of one length."""

    layout: InPlaceLayout
    hidden: torch.Tensor
    replay: Callable[[], None]


class Recordings:
    """Recorded passes of one engine.

    Args:
        device: Where they run.
        run: A forward pass.
        record: Records what a function starts on the device; gives what it returned, which is
            memory of the recording, and what starts all of it again.
        meter: Measures passes; that of the device if not given.
    """

    def __init__(
        self,
        device: torch.device,
        run: Run,
        *,
        record: Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Callable[[], None]]],
        meter: Meter | None = None,
    ) -> None:
        self._run, self._record, self._meter = run, record, meter or Meter(device)
        self._seen: dict[int, int] = {}
        self._made: dict[int, _Recording | None] = {}

    def hidden(self, layout: TrieLayout, ids: NDArray[np.int64]) -> torch.Tensor:
        """The hidden states of all nodes, (length, C), of a recording where there is one."""
        length = layout.length
        made = self._made.get(length)
        if made is not None:
            made.layout.write(layout, ids)
            made.replay()
            return made.hidden.clone()
        hidden = self._plain(layout, ids)
        self._seen[length] = self._seen.get(length, 0) + 1
        if length not in self._made and self._seen[length] >= REPEATED:
            self._made[length] = self._recorded(layout, ids, hidden)
        return hidden

    def _plain(self, layout: TrieLayout, ids: NDArray[np.int64]) -> torch.Tensor:
        positions = to_device(layout.depths[None].astype(np.int64), layout.device)
        return self._run(layout, to_device(ids, layout.device), positions)

    def _recorded(
        self, layout: TrieLayout, ids: NDArray[np.int64], right: torch.Tensor
    ) -> _Recording | None:
        """A recording of a pass, if it gives the same numbers, and sooner."""
        placed = InPlaceLayout.like(layout, ids)

        def run() -> torch.Tensor:
            placed.rewind()
            return self._run(placed, placed.ids, placed.positions)

        try:
            run()  # makes the lists of blocks, which cannot be made while it is recorded
            hidden, replay = self._record(run)
            made = _Recording(placed, hidden, replay)
            made.layout.write(layout, ids)
            replay()
            if not torch.equal(hidden, right):
                return None
            recorded = self._meter.seconds(lambda: self._waited(replay, hidden))
            plain = self._meter.seconds(lambda: self._waited(lambda: self._plain(layout, ids)))
        except RuntimeError:  # the model's code waits for the device, or memory is short
            return None
        return made if recorded * _PAYS < plain else None

    @staticmethod
    def _waited(work: Callable[[], Any], hidden: torch.Tensor | None = None) -> None:
        found = work()
        last = found if hidden is None else hidden
        last[-1, -1].item()


def record_on_device(
    work: Callable[[], torch.Tensor],
) -> tuple[torch.Tensor, Callable[[], None]]:
    """Records work as a CUDA graph, after it has run once beside all else, as torch wants it."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        hidden = work()
    return hidden, graph.replay
