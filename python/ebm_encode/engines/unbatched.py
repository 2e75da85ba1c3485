"""Sequences at batch size 1: the reference that all else is compared with, and its own noise."""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from traceback import clear_frames
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.noise import ROUNDED_RUNS, rounded
from ebm_encode.engines.output import OutputSlots
from ebm_encode.engines.padded import UnbatchedEngine
from ebm_encode.engines.reference import Reference
from ebm_encode.errors import EncodingError, ModelError, TextFailedError, one_line
from ebm_encode.loading.model import Model

log = logging.getLogger(__name__)

T = TypeVar("T")


class Unbatched:
    """Runs one sequence at a time, and tells whether the model or the text is at fault if it fails.

    Args:
        model: The model.
        engine: The engine that is the reference.
        probe: A sequence that the model ran when it was loaded.
        dim: Length of an embedding.
        lock: To be held while an engine runs.
    """

    def __init__(
        self,
        model: Model,
        engine: UnbatchedEngine,
        probe: NDArray[np.uint32],
        dim: int,
        lock: threading.Lock,
    ) -> None:
        self.engine = engine
        self._model, self._probe, self._dim, self._lock = model, probe, dim, lock

    def embedding(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The embedding of one sequence, float32 `[dim]`: batch size 1, no padding.

        Raises:
            EncodingError: If it does not fit the memory.
            TextFailedError: If the model fails on it.
            ModelError: If the model does not run any more.
        """
        slots = OutputSlots.new(1, self._dim)
        self._run(sequence, lambda: self.engine.forward([sequence], slots).wait())
        return slots.slot(0)

    def reference(self, sequence: NDArray[np.uint32], seed: int | None = None) -> Reference:
        """As `embedding`, with the hidden states of all tokens.

        Args:
            sequence: Token ids.
            seed: Change the input of each layer by one rounding at random, by this seed.
        """
        slots = OutputSlots.new(1, self._dim)
        run = partial(self.engine.states, [sequence], slots, [0])
        return Reference(self._run(sequence, run, seed), slots.array)

    def spread(self, sequence: NDArray[np.uint32]) -> float:
        """How far rounding may move the embedding of a sequence, relative L2.

        The reference is run again with the input of each layer changed by one rounding at random;
        the largest change of some such runs.
        """
        embedding, moved = self._rounded(sequence)
        return float(np.linalg.norm(moved, axis=1).max() / np.linalg.norm(embedding))

    def spread_along(self, sequence: NDArray[np.uint32], direction: NDArray[np.float64]) -> float:
        """How far rounding may move the embedding along a vector `[dim]`, in its lengths."""
        _, moved = self._rounded(sequence)
        return float(np.abs(moved @ direction).max() / (direction @ direction))

    def _rounded(
        self, sequence: NDArray[np.uint32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The embedding of a sequence, `[dim]`, and its changes by roundings, `[runs, dim]`."""
        embedding = self.embedding(sequence).astype(np.float64)
        changes = [
            self.reference(sequence, seed).embeddings[0] - embedding for seed in range(ROUNDED_RUNS)
        ]
        return embedding, np.stack(changes)

    def _run(
        self, sequence: NDArray[np.uint32], run: Callable[[], T], seed: int | None = None
    ) -> T:
        failure = None
        try:
            # Roundings within the lock: no other thread's pass may meet them.
            with self._lock, nullcontext() if seed is None else rounded(self._model, seed):
                return run()
        except Exception as error:  # noqa: BLE001  (a model's code may raise anything)
            failure = error
        clear_frames(failure.__traceback__)  # which hold the tensors of the pass
        free_memory()
        if is_out_of_memory(failure):
            raise EncodingError(f"out of memory at batch size 1 ({len(sequence)} tokens)")
        reason = (
            f"the model fails on its {len(sequence)} tokens, unbatched too ({one_line(failure)})"
        )
        if self._is_healthy():
            raise TextFailedError(reason) from failure
        raise ModelError(f"{self._model.name}: {reason}") from failure

    def _is_healthy(self) -> bool:
        """Whether the model still runs what it ran when it was loaded."""
        try:
            with self._lock:
                self.engine.forward([self._probe], OutputSlots.new(1, self._dim)).wait()
        except Exception as error:  # noqa: BLE001  (a model's code may raise anything)
            log.warning("the model fails on what it ran before: %s", one_line(error))
            return False
        return True
