"""How fast states are encoded: states, tokens and unique tokens per second, FLOPs, peak memory."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import blocks
from cost import Cost, cost_of
from session import timed

from ebm_encode import Encoder
from ebm_encode.bulk.ahead import ahead
from ebm_encode.engines.reference import compare
from ebm_encode.prompts.templates import Template
from ebm_encode.prompts.tokens import CHUNK_STATES, Tokens

sys.path.append(str(Path(__file__).parents[1]))
from peak_memory import most_resident

Encode = Callable[[list[str]], np.ndarray]
"""States to embeddings, float32 `[n, dim]`, in their order."""


@dataclass
class Setting:
    """What all contenders have in common.

    Attributes:
        folder: The model's.
        device: torch device.
        dtype: Compute dtype.
        template: Text around each state.
        states: The states; the first so many are a sample of all.
        facts: What `models.write_llama` tells of the model.
        peak: FLOP/s of the device's data sheet in the dtype, if known.
        matmul: FLOP/s of the fastest matmul of the model's largest shape.
        elsewhere: Bytes on the device that are not the contender's, but those of models beside it.
        checked: States of which every contender's embeddings are compared.
        embeddings: Those of each contender, by its name.
    """

    folder: Path
    device: str
    dtype: str
    template: Template
    states: list[str]
    facts: dict[str, Any]
    peak: float | None = None
    matmul: float | None = None
    elsewhere: int = 0
    checked: list[str] = field(default_factory=list)
    embeddings: dict[str, np.ndarray] = field(default_factory=dict)


def in_bulk(encoder: Encoder) -> Encode:
    """Encodes as a bulk run does: 4,096 states at a time, the next ones tokenized meanwhile.

    Without the checks and the writing, which have threads of their own there.
    """

    def tokenized(states: list[str]) -> Iterator[Tokens]:
        for first in range(0, len(states), CHUNK_STATES):
            yield encoder.prompts.tokenize(states[first : first + CHUNK_STATES])

    def encode(states: list[str]) -> np.ndarray:
        rows = np.full((len(states), encoder.dim), np.nan, np.float32)
        first = 0
        for tokens in ahead(tokenized(states), "tokenize"):
            for done in encoder.runner.run(tokens):
                rows[[first + i for i in done.indices]] = done.embeddings
            first += len(tokens)
        return rows

    return encode


class Costs:
    """The cost of the first so many states, computed once each, with the encoder's own tokens."""

    def __init__(self, encoder: Encoder, setting: Setting) -> None:
        self._encoder, self._setting = encoder, setting
        self._known: dict[int, Cost] = {}

    def of(self, states: list[str]) -> Cost:
        """The cost of states that are not the first so many."""
        encoder, parameters = self._encoder, self._setting.facts["layer_parameters"]
        return cost_of(encoder.prompts.tokenize(states), encoder.model.config, parameters)

    def first(self, count: int) -> Cost:
        """The cost of the first so many states."""
        if count not in self._known:
            self._known[count] = self.of(self._setting.states[:count])
        return self._known[count]


def measure(
    name: str,
    encode: Encode,
    setting: Setting,
    costs: Costs,
    count: int,
    *,
    end: float,
    choose: Callable[[list[str], int], list[str]] = blocks,
) -> dict[str, Any]:
    """The speed of a contender over the first `count` states, or as many as it has time for.

    Args:
        name: Of the contender.
        encode: The contender.
        setting: What all have in common.
        costs: What states cost.
        count: Number of states.
        end: When to be done, by `time.monotonic`.
        choose: Chooses about so many of the states, if there is no time for all.
    """
    states, whole = setting.states[:count], costs.first(count)
    if name not in setting.embeddings:
        setting.embeddings[name] = encode(setting.checked)
    rate = _pilot(encode, states, seconds=end - time.monotonic())
    fits = int(rate * 0.8 * (end - time.monotonic()))
    some = states if fits >= count else choose(states, fits)
    cost = whole if len(some) == count else costs.of(some)
    _forget_peak(setting.device)
    times = timed(lambda: encode(some), seconds=0.9 * (end - time.monotonic()))
    rate = cost.states / statistics.median(times)
    # Of a contender that got fewer states, too: what they need is what they need among all.
    flops = rate * whole.flops / whole.states
    return {
        "contender": name,
        "of_states": whole.states,
        "states": cost.states,
        "tokens": cost.tokens,
        "unique_tokens": cost.unique_tokens,
        "rounds_seconds": [round(one, 4) for one in times],
        "states_per_second": rate,
        "tokens_per_second": rate * cost.tokens / cost.states,
        "unique_tokens_per_second": rate * whole.unique_tokens / whole.states,
        "flops_per_second": flops,
        "mfu": None if setting.peak is None else flops / setting.peak,
        "share_of_matmul": None if setting.matmul is None else flops / setting.matmul,
        "peak_bytes": _peak(setting.device) - setting.elsewhere,
    }


def _pilot(encode: Encode, states: list[str], *, seconds: float) -> float:
    """States per second over some of the states, in a small part of the time; warms up."""
    encode([max(states, key=len)])
    count = 32
    while True:
        some = blocks(states, count)
        encode(some)  # finds memory and kernels
        start = time.perf_counter()
        encode(some)
        taken = time.perf_counter() - start
        if taken > seconds / 40 or count >= min(len(states), 1024):
            return len(some) / taken
        count *= 4


def agreement(setting: Setting, reference: np.ndarray) -> list[dict[str, Any]]:
    """How far each contender's embeddings are from those of plain transformers at batch size 1."""
    found = []
    for name, rows in setting.embeddings.items():
        error, cosine = compare(rows, reference)
        found.append({"contender": name, "relative_error": error, "cosine": cosine})
    return found


def free() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # 5: the kernel forgets the peak of this process.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: str) -> int:
    """Peak memory in bytes: of the device; on a CPU, of the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return most_resident()
