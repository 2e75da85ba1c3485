"""What a pass takes of a device: time and memory."""

import gc
import math
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

import torch

_SHARE_FOR_PATHS = 0.1
"""How much of a device's memory the keys and values along all paths of a batch may take."""


class Meter:
    """Measures passes on a device. Memory that is unknown stops nothing; running out of it does.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None

    def free(self) -> float:
        """Bytes that are left, with what torch holds without using it; infinity if unknown."""
        if self._device.type == "cpu":
            return math.inf
        try:
            free, _ = torch.accelerator.get_memory_info(self._device)
            held = torch.accelerator.memory_reserved(self._device)
            return float(free + held - torch.accelerator.memory_allocated(self._device))
        except RuntimeError:
            return math.inf

    def share_for_paths(self) -> int | None:
        """Bytes that keys and values along paths may take in a layer; `None` if any may.

        It decides what shares a batch, so it is the same whatever else uses the device.
        """
        if self._device.type == "cpu":
            return None
        try:
            _, total = torch.accelerator.get_memory_info(self._device)
        except RuntimeError:
            return None
        return int(_SHARE_FOR_PATHS * total)

    def start(self) -> None:
        """From here on the most memory in use is noted."""
        self._before = None
        if self._device.type == "cpu":
            return
        with suppress(RuntimeError):
            torch.accelerator.reset_peak_memory_stats(self._device)
            self._before = torch.accelerator.memory_allocated(self._device)

    def taken(self) -> float:
        """The most bytes that were in use since `start`, beyond what was then; 0 if unknown."""
        if self._before is None:
            return 0.0
        return float(torch.accelerator.max_memory_allocated(self._device) - self._before)

    def seconds(self, work: Callable[[], None]) -> float:
        """How long some work takes, which waits for its results.

        On NVIDIA's and AMD's devices their own clock counts, from event to event.
        """
        gc.collect()  # not in the middle of it
        if self._device.type != "cuda":
            start = perf_counter()
            work()
            return perf_counter() - start
        with torch.cuda.device(self._device):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            work()
            events[1].record()
            events[1].synchronize()
            return float(events[0].elapsed_time(events[1])) / 1000
