"""What every engine is."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.rows import Arrival, Rows
from ebm_encode.prompts.tokens import Tokens

Pooling = Literal["mean", "last"]


class Engine(Protocol):
    """Runs token sequences through a model."""

    name: str

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """The batches to run, as indices into `tokens`; the same tokens give the same plan."""

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """How many tokens a batch puts through the model; what its memory goes by."""

    def at_once(self, size: int) -> int:
        """How many of so many tokens of one row go through the model at once; 0: one sequence's."""

    def last_at_once(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Which sequence of a batch has the last of the tokens that `at_once` counts."""

    def forward(self, sequences: Sequence[NDArray[np.uint32]], rows: Rows) -> Arrival:
        """One pass over one batch; the row of each sequence is there when it has arrived."""

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], rows: Rows, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and waits; also the hidden states that some rows are pooled from.

        Returns one array per wanted sequence, float32 `(T, C)`: one hidden state per token.
        """

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], rows: Rows
    ) -> list[NDArray[np.float32]]:
        """As `states` of all sequences, but a small batch is divided as a large one would be."""
