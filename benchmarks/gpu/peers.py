"""Other ways to the same embeddings of the large model: those of benchmarks/throughput."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from corpus import blocks
from exactness import unbatched
from speed import Costs, Encode, Setting, measure

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
import contenders

SIZES = (8, 32, 128)
"""Batch sizes of which the sorted loop takes the fastest."""
SORTED = "padded, sorted by length"
PEERS = (SORTED, "batch size 1", "the seed's recipe", "sentence-transformers")
"""The seed's recipe: padded batches of 32 in text order, with logits and all layers' states."""


@dataclass(frozen=True)
class Held(contenders.Setup):
    """The input of contenders that share one model in memory.

    Attributes:
        in_memory: The causal model.
    """

    in_memory: Any = None

    def causal(self) -> Any:
        """The model in memory."""
        return self.in_memory


class Peers:
    """Plain transformers and sentence-transformers, on the same weights, states and dtype."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        given = (str(setting.folder), [], setting.device, setting.dtype)
        self._plain = contenders.Setup(*given)
        self._held = Held(*given, in_memory=self._plain.causal())

    def reference(self) -> np.ndarray:
        """Plain transformers at batch size 1, on the states that are compared."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._held.model)
        checked = [self._setting.template.prompt(state) for state in self._setting.checked]
        return unbatched(self._held.causal().base_model, tokenizer, checked)

    def drop(self) -> None:
        """Forgets the model in memory, before a contender that loads its own."""
        self._held = Held(*vars(self._plain).values())

    def measured(self, name: str, costs: Costs, count: int, seconds: float) -> dict[str, Any]:
        """The speed of a peer over as many of the first `count` states as it has time for."""
        end = time.monotonic() + seconds
        encode, more = self._encode(name, self._setting.states[:count])

        def encode_states(states: list[str]) -> np.ndarray:
            return encode([self._setting.template.prompt(state) for state in states])

        return measure(name, encode_states, self._setting, costs, count, end=end) | more

    def _encode(self, name: str, states: list[str]) -> tuple[Encode, dict[str, Any]]:
        if name == SORTED:
            return self._best_sorted(states)
        if name == "batch size 1":
            return contenders.unbatched(self._held), {}
        if name == "sentence-transformers":
            return contenders.sentence_transformers(self._plain), {}
        return contenders.classic_logits(self._held), {}

    def _best_sorted(self, states: list[str]) -> tuple[Encode, dict[str, Any]]:
        """The sorted loop with its fastest batch size, and the rates of all."""
        template = self._setting.template
        some = [template.prompt(state) for state in blocks(states, 4 * max(SIZES))]
        rates: dict[int, float] = {}
        for size in SIZES:
            encode = contenders.padded(self._held, size=size, by_length=True)
            try:
                encode(some[: 2 * size])
                start = time.perf_counter()
                encode(some)
                rates[size] = len(some) / (time.perf_counter() - start)
            except torch.OutOfMemoryError:
                break
        best = max(rates, key=rates.__getitem__)
        found = {"batch_size": best, "states_per_second_by_batch_size": rates}
        return contenders.padded(self._held, size=best, by_length=True), found
