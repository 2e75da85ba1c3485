"""How large a forward pass should be on a device: tried on sequences like those to come.

A GPU wants more tokens at a time than a CPU, how many depends on the model, and larger batches
share more. So sizes are tried, each twice the one before, until one gains nothing or memory runs
short.
"""

import gc
import math
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.output import OutputSlots
from ebm_encode.prompts.tokens import Tokens

SIZES = tuple(2**k for k in range(12, 18))
"""Tokens of a pass that are tried, 4,096 to 131,072."""

_GAIN = 1.02
"""A size that is not faster by this is the last that is tried."""
_SHARE_OF_MEMORY = 0.8
"""How much of the free memory a pass may take."""
_LONGEST = 10.0
"""Seconds of a pass after which no larger one is tried: callers would wait too long."""
_FULL = 0.9
"""A batch this full shows what its size can do."""


@dataclass(frozen=True)
class Calibration:
    """What trials found.

    Attributes:
        tokens: Most tokens of a pass, the best of those tried.
        rates: Tokens per second through the model, by size; empty if none could be tried.
        compiled: The same at that size with the model's layers compiled, if that was tried.
    """

    tokens: int
    rates: dict[int, float]
    compiled: float | None = None

    @property
    def rate(self) -> float | None:
        """Tokens per second at the size that was chosen, as the model is."""
        return self.rates.get(self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        rates = {str(size): round(rate, 1) for size, rate in self.rates.items()}
        return {"tokens_per_second": rates, "tokens_per_second_compiled": self.compiled}

    def __str__(self) -> str:
        """The rates in words."""
        rates = [f"{size:,}: {rate:,.0f} tokens/s" for size, rate in self.rates.items()]
        if self.compiled is not None:
            rates.append(f"compiled: {self.compiled:,.0f} tokens/s")
        return ", ".join(rates) or "not measured"


class Memory:
    """The memory of a device, in bytes. What is unknown stops nothing; running out does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None

    def free(self) -> float:
        """What is left, with what torch holds without using it; infinity if unknown."""
        if self._device.type == "cpu":
            return math.inf
        try:
            free, _ = torch.accelerator.get_memory_info(self._device)
            held = torch.accelerator.memory_reserved(self._device)
            return float(free + held - torch.accelerator.memory_allocated(self._device))
        except RuntimeError:
            return math.inf

    def start(self) -> None:
        """From here on the most memory in use is noted."""
        self._before = None
        if self._device.type == "cpu":
            return
        with suppress(RuntimeError):
            torch.accelerator.reset_peak_memory_stats(self._device)
            self._before = torch.accelerator.memory_allocated(self._device)

    def taken(self) -> float:
        """The most that was in use since `start`, beyond what was then; 0 if unknown."""
        if self._before is None:
            return 0.0
        return float(torch.accelerator.max_memory_allocated(self._device) - self._before)


def calibrate(
    engine: Engine, budget: Budget, tokens: Tokens, *, dim: int, memory: Memory
) -> Calibration:
    """Tries sizes, and leaves the best in the budget; of like ones the largest, which shares most.

    Args:
        engine: The engine, which goes by the budget.
        budget: What to set.
        tokens: Sequences like those to come; where they fill no pass, no larger one is tried.
        dim: Length of an embedding.
        memory: That of the engine's device.
    """
    usual = budget.tokens
    rates: dict[int, float] = {}
    try:
        _try_sizes(engine, budget, tokens, rates, dim=dim, memory=memory)
    finally:
        best = max(rates.values(), default=0.0)
        near = (size for size, rate in rates.items() if rate * _GAIN >= best)
        budget.tokens = max(near, default=usual)
    return Calibration(budget.tokens, rates)


def _try_sizes(
    engine: Engine,
    budget: Budget,
    tokens: Tokens,
    rates: dict[int, float],
    *,
    dim: int,
    memory: Memory,
) -> None:
    """Adds the rate of each size that was tried."""
    bytes_per_token = 0.0
    for size in SIZES if len(tokens) else ():
        if bytes_per_token * size > _SHARE_OF_MEMORY * memory.free():
            break
        budget.tokens = size
        batch = _fullest(engine, tokens)
        through = engine.size(batch)
        if through < _FULL * size:
            break
        try:
            seconds = _second_pass(engine, batch, dim, memory)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        bytes_per_token = memory.taken() / through
        best_before = max(rates.values(), default=0.0)
        rates[size] = through / seconds
        if rates[size] < _GAIN * best_before or seconds > _LONGEST:
            break
    free_memory()  # what was held for sizes that are not used


def _fullest(engine: Engine, tokens: Tokens) -> list[NDArray[np.uint32]]:
    """The batch of the engine's plan that has most tokens to put through."""
    batches = ([tokens[i] for i in batch] for batch in engine.plan(tokens))
    return max(batches, key=engine.size)


def rate_of(engine: Engine, tokens: Tokens, *, dim: int, memory: Memory) -> float:
    """Tokens per second through the model in the fullest batch of the engine's plan."""
    batch = _fullest(engine, tokens)
    return engine.size(batch) / _second_pass(engine, batch, dim, memory)


def _second_pass(
    engine: Engine, batch: list[NDArray[np.uint32]], dim: int, memory: Memory
) -> float:
    """Seconds of a pass. The first of its kind finds memory and kernels for it."""
    _timed(engine, batch, dim)
    memory.start()
    return _timed(engine, batch, dim)


def _timed(engine: Engine, batch: list[NDArray[np.uint32]], dim: int) -> float:
    gc.collect()  # not in the middle of it
    start = perf_counter()
    engine.forward(batch, OutputSlots.new(len(batch), dim)).wait()
    return perf_counter() - start
