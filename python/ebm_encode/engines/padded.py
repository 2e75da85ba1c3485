"""Padded batches, and sequences at batch size 1: what works with any model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.layer import LayerTap
from ebm_encode.engines.output import OutputSlots, Pass, to_device
from ebm_encode.engines.padding_masks import making_masks
from ebm_encode.loading.model import Model
from ebm_encode.options import Pooling
from ebm_encode.prompts.tokens import Tokens
from ebm_encode.torch_settings import inference


class PaddedEngine:
    """Batches of like length, padded on the right.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: Most tokens of a batch, padding included, and most sequences.
    """

    name = "padded"

    def __init__(self, model: Model, pooling: Pooling, layer: int, budget: Budget) -> None:
        self._model = model
        self._pooling = pooling
        self._tap = LayerTap(model, layer)
        self._budget = budget

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Batches under the budget of tokens and sequences, longest first."""
        lengths = tokens.lengths.astype(np.uint32)
        return _core.plan_padded(lengths, self._budget.tokens, self._budget.sequences)

    def size(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """Tokens of a batch, padding included."""
        return len(sequences) * max(map(len, sequences))

    def tokens_per_forward(self, size: int) -> int:  # noqa: ARG002
        """0: each row holds one sequence."""
        return 0

    def last_packed_index(self, sequences: Sequence[NDArray[np.uint32]]) -> int:
        """The longest sequence."""
        return max(range(len(sequences)), key=lambda i: len(sequences[i]))

    def forward(self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots) -> Pass:
        """Starts a pass over a padded batch."""
        with inference():
            return self._pooled(self._hidden(sequences), sequences, slots)

    def states(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots, wanted: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """As `forward`, and the hidden states of some sequences."""
        with inference():
            hidden = self._hidden(sequences)
            self._pooled(hidden, sequences, slots).wait()
            own = [hidden[i, : len(sequences[i])] for i in wanted]
            return [states.float().cpu().numpy() for states in own]

    def trial(
        self, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> list[NDArray[np.float32]]:
        """As `states` of all."""
        return self.states(sequences, slots, range(len(sequences)))

    def _pooled(
        self, hidden: torch.Tensor, sequences: Sequence[NDArray[np.uint32]], slots: OutputSlots
    ) -> Pass:
        if hidden.device.type == "cpu":
            for states, tokens, slot in zip(hidden, sequences, slots.tensors, strict=True):
                self._pool(states[: len(tokens)], slot)
            return Pass(slots)
        ends = to_device(np.array([len(own) for own in sequences]), hidden.device)
        return Pass(slots, slots.start_copy(pool_padded(hidden, ends, self._pooling)))

    def _hidden(self, sequences: Sequence[NDArray[np.uint32]]) -> torch.Tensor:
        """The hidden state of every slot, (B, T, C)."""
        lengths = [len(sequence) for sequence in sequences]
        longest = max(lengths)
        # Any id will do as padding: on the right, no token of a causal model sees it, the mask
        # hides it from one that is not causal, and pooling skips it.
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        device = self._model.device
        input_ids = to_device(ids, device)  # (B, T)
        positions = torch.arange(longest, device=device)
        ends = to_device(np.array(lengths), device)
        mask = (positions[None, :] < ends[:, None]).long()  # (B, T)
        with self._masks():
            return self._tap.hidden(input_ids, mask)

    def _masks(self) -> AbstractContextManager[None]:
        return nullcontext() if self._model.device.type == "cpu" else making_masks()

    def _pool(self, own: torch.Tensor, target: torch.Tensor) -> None:
        """Pools a sequence's own hidden states, (T, C) to (C,), in float32."""
        if self._pooling == "last":
            target.copy_(own[-1])
        else:
            torch.sum(own, dim=0, dtype=torch.float32, out=target).div_(len(own))


def pool_padded(hidden: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """The pooled states of a padded batch, (B, T, C) to float32 (B, C), in a few operations.

    Args:
        hidden: Hidden states; sequences begin at the left.
        lengths: Tokens of each sequence, int64 (B,).
        pooling: `mean` over a sequence's own tokens, or its `last`.
    """
    if pooling == "last":
        return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1].float()
    own = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, T)
    # What stands at padding may be anything, also NaN.
    sums = hidden.masked_fill(~own[..., None], 0).sum(dim=1, dtype=torch.float32)
    return sums.div_(lengths[:, None])


class UnbatchedEngine(PaddedEngine):
    """One sequence at a time, batch size 1: slow, and exact by definition. The reference.

    Attributes:
        pooling: As given.
    """

    name = "unbatched"

    def __init__(self, model: Model, pooling: Pooling, layer: int) -> None:
        super().__init__(model, pooling, layer, Budget(1, 1))
        self.pooling: Pooling = pooling

    def _masks(self) -> AbstractContextManager[None]:
        """The reference runs the model's own code."""
        return nullcontext()

    def width(self, sequence: NDArray[np.uint32]) -> int:
        """Length of an embedding, found by running the model; its config may not say."""
        with inference():
            return int(self._hidden([sequence]).shape[-1])
