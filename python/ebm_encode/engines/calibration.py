"""How large a forward pass should be on a device: tried on sequences like those to come.

A GPU wants more tokens at a time than a CPU, how many depends on the model, and larger batches
share more. So sizes are tried, each twice the one before, until two gain nothing or memory runs
short. Each is timed over several passes, of which the median counts.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.meter import Meter
from ebm_encode.engines.output import OutputSlots
from ebm_encode.prompts.tokens import Tokens

SIZES = tuple(2**k for k in range(12, 18))
"""Tokens of a pass that are tried, 4,096 to 131,072."""

PASSES = 3
"""Timed passes of each kind, after one that finds memory and kernels for it."""

_GAIN = 1.02
"""What is not faster by this gains nothing."""
_WITHOUT_GAIN = 2
"""Sizes in a row without a gain, after which no larger one is tried."""
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
        engines: Seconds of the same sequences by each exact engine, if that was tried.
        requests: Seconds of a search's request by each exact engine, if that was tried.
        sample: The sequences of the fullest batch of that size.
    """

    tokens: int
    rates: dict[int, float]
    compiled: float | None = None
    engines: dict[str, float] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    sample: Tokens | None = field(default=None, repr=False, compare=False)

    @property
    def rate(self) -> float | None:
        """Tokens per second at the size that was chosen, as the model is."""
        return self.rates.get(self.tokens)

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        rates = {str(size): round(rate, 1) for size, rate in self.rates.items()}
        return {
            "tokens_per_second": rates,
            "tokens_per_second_compiled": self.compiled,
            "seconds_by_engine": self.engines,
            "request_seconds_by_engine": self.requests,
        }

    def __str__(self) -> str:
        """The rates in words."""
        rates = [f"{size:,}: {rate:,.0f} tokens/s" for size, rate in self.rates.items()]
        if self.compiled is not None:
            rates.append(f"compiled: {self.compiled:,.0f} tokens/s")
        rates += [f"{name}: {1000 * seconds:,.1f} ms" for name, seconds in self.engines.items()]
        return ", ".join(rates) or "not measured"


def calibrate(
    engine: Engine, budget: Budget, tokens: Tokens, *, dim: int, meter: Meter
) -> Calibration:
    """Tries sizes, and leaves the best in the budget; of like ones the largest, which shares most.

    Args:
        engine: The engine, which goes by the budget.
        budget: What to set.
        tokens: Sequences like those to come; where they fill no pass, no larger one is tried.
        dim: Length of an embedding.
        meter: That of the engine's device.
    """
    usual = budget.tokens
    rates: dict[int, float] = {}
    try:
        _try_sizes(engine, budget, tokens, rates, dim=dim, meter=meter)
    finally:
        best = max(rates.values(), default=0.0)
        near = (size for size, rate in rates.items() if rate * _GAIN >= best)
        budget.tokens = max(near, default=usual)
    sample = tokens.select(_fullest(engine, tokens)) if rates else None
    return Calibration(budget.tokens, rates, sample=sample)


def _try_sizes(
    engine: Engine,
    budget: Budget,
    tokens: Tokens,
    rates: dict[int, float],
    *,
    dim: int,
    meter: Meter,
) -> None:
    """Adds the rate of each size that was tried."""
    bytes_per_token = 0.0
    without_gain = 0
    for size in SIZES if len(tokens) else ():
        if bytes_per_token * size > _SHARE_OF_MEMORY * meter.free():
            break
        budget.tokens = size
        batch = [tokens[i] for i in _fullest(engine, tokens)]
        through = engine.size(batch)
        if through < _FULL * size:
            break
        try:
            seconds = _median_seconds(engine, [batch], dim, meter)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            break
        bytes_per_token = meter.taken() / through
        best_before = max(rates.values(), default=0.0)
        rates[size] = through / seconds
        without_gain = without_gain + 1 if rates[size] < _GAIN * best_before else 0
        if without_gain == _WITHOUT_GAIN or seconds > _LONGEST:
            break
    free_memory()  # what was held for sizes that are not used


def _fullest(engine: Engine, tokens: Tokens) -> list[int]:
    """The batch of the engine's plan that has most tokens to put through."""
    return max(engine.plan(tokens), key=lambda batch: engine.size([tokens[i] for i in batch]))


def seconds_of(engine: Engine, tokens: Tokens, *, dim: int, meter: Meter) -> float:
    """Seconds that an engine takes for some sequences, in the batches of its own plan."""
    batches = [[tokens[i] for i in batch] for batch in engine.plan(tokens)]
    return _median_seconds(engine, batches, dim, meter)


def _median_seconds(
    engine: Engine, batches: Sequence[list[NDArray[np.uint32]]], dim: int, meter: Meter
) -> float:
    """Median seconds of some passes, one after the other, over several rounds."""

    def run() -> None:
        for batch in batches:
            engine.forward(batch, OutputSlots.new(len(batch), dim)).wait()

    run()
    meter.start()
    return statistics.median(meter.seconds(run) for _ in range(PASSES))
