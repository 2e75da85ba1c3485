"""What every engine is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.prompts.tokens import Tokens


class Engine(Protocol):
    """Runs token sequences through a model. Sequences are arrays uint32 `[length]`."""

    name: str

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """The batches to run, as indices into `tokens`; the same tokens give the same plan."""

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """How many tokens a batch puts through the model, padding included."""

    def tokens_per_forward(self, size: int) -> int:
        """Most tokens in one row of the model's input for a batch of a size; 0: one sequence's."""

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """The sequence with the last of the tokens that `tokens_per_forward` counts."""

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        """Starts a pass over one batch; its embeddings are in the slots after `Pass.wait`."""

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and waits; also the hidden states of some of the sequences.

        Returns one array per wanted sequence, float32 `(T, C)`: one hidden state per token.
        """

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        """As `states` of all sequences, but a small batch is divided as a large one would be."""


class EngineError(Exception):
    """An engine failed or is not exact; `Runner` then falls back on the next one.

    Attributes:
        engine: The engine.
        indices: The sequences that showed it.
        failed: Whether a pass raised an exception, which is then the cause of this one. Not yet
            known is whether the engine or one of the texts is at fault.
    """

    def __init__(
        self, engine: Engine, reason: str, indices: Sequence[int], *, failed: bool = False
    ) -> None:
        super().__init__(reason)
        self.engine = engine
        self.indices = list(indices)
        self.failed = failed
