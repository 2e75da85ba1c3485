"""Engines: ways to run token sequences through a model, one pooled row per sequence.

Each plans batches and runs one batch at a time; what to do about a lack of memory or a bad row is
the caller's concern. `choose_engine` trusts none until it has compared it with each sequence alone.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode.errors import ModelError
from ebm_encode.model import Model
from ebm_encode.tokens import Tokens

log = logging.getLogger(__name__)

Pooling = Literal["mean", "last"]

MAX_RELATIVE_ERROR = 1e-5
"""Float32 rows may differ by this much from the state alone, relative to the largest value."""
MIN_COSINE = 0.9995
"""Rows in a 16-bit dtype must be at least this similar to the state alone in that dtype."""


class Engine(Protocol):
    """Runs token sequences through a model."""

    name: str

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """The batches to run, as indices into `tokens`; the same tokens give the same plan."""

    def forward(self, sequences: Sequence[NDArray[np.uint32]]) -> NDArray[np.float32]:
        """One pass over one batch; float32 `[len(sequences), dim]`."""


class PaddedEngine:
    """Batches of like length, padded on the right.

    Args:
        model: The model.
        pooling: `mean` over a sequence's own tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        max_tokens: Most tokens of a batch, padding included.
        max_rows: Most sequences of a batch.
    """

    name = "padded"

    def __init__(
        self, model: Model, pooling: Pooling, layer: int, *, max_tokens: int, max_rows: int
    ) -> None:
        self._model = model
        self._pooling = pooling
        self._tap = _LayerTap(model, layer)
        self._max_tokens = max_tokens
        self._max_rows = max_rows

    def plan(self, tokens: Tokens) -> list[list[int]]:
        """Batches under the budget of tokens and rows, longest first."""
        return _core.plan_padded(tokens.lengths.astype(np.uint32), self._max_tokens, self._max_rows)

    def forward(self, sequences: Sequence[NDArray[np.uint32]]) -> NDArray[np.float32]:
        """One pass; float32 `[B, C]`."""
        with torch.inference_mode():
            rows: NDArray[np.float32] = self._pooled(sequences).cpu().numpy()
        return rows

    def _pooled(self, sequences: Sequence[NDArray[np.uint32]]) -> torch.Tensor:
        """The pooled rows on the model's device, (B, C) float32."""
        lengths = [len(sequence) for sequence in sequences]
        longest = max(lengths)
        # Any id will do as padding: on the right, no token of a causal model sees it, the mask
        # hides it from one that is not causal, and pooling leaves it out.
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        device = self._model.device
        input_ids = torch.from_numpy(ids).to(device)  # (B, T)
        positions = torch.arange(longest, device=device)
        ends = torch.tensor(lengths, device=device)
        mask = (positions[None, :] < ends[:, None]).long()  # (B, T)
        hidden = self._tap.hidden(input_ids, mask)  # (B, T, C)
        own = zip(hidden, lengths, strict=True)
        return torch.stack([self._pool(states[:length]) for states, length in own])

    def _pool(self, own: torch.Tensor) -> torch.Tensor:
        """One row from a sequence's own hidden states, (T, C) to (C,), in float32."""
        if self._pooling == "last":
            return own[-1].float()
        return own.sum(dim=0, dtype=torch.float32) / len(own)


class AloneEngine(PaddedEngine):
    """One sequence at a time: slow, and right by definition."""

    name = "alone"

    def __init__(self, model: Model, pooling: Pooling, layer: int) -> None:
        super().__init__(model, pooling, layer, max_tokens=1, max_rows=1)


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and why.

    Attributes:
        engine: The engine.
        dim: Length of the rows.
        reason: In words.
        error: Largest relative difference from each probe alone, by the engine first tried.
        cosine: Smallest cosine with each probe alone, likewise.
    """

    engine: Engine
    dim: int
    reason: str
    error: float
    cosine: float


def choose_engine(candidate: Engine, alone: Engine, probes: Tokens, dtype: str) -> EngineChoice:
    """The candidate, if its rows equal those of each probe alone; else one at a time."""
    sequences = [probes[i] for i in range(len(probes))]
    expected = np.concatenate([alone.forward([sequence]) for sequence in sequences])
    dim = int(expected.shape[1])
    batched = candidate.forward(sequences)
    error, cosine = compare(batched, expected)
    if not np.isfinite(expected).all():
        reason = "the model's rows are not finite even alone; every row will be refused"
        log.warning("self-test: %s", reason)
        return EngineChoice(candidate, dim, reason, error, cosine)
    if agrees(error, cosine, dtype):
        reason = f"equals each probe alone (relative error {error:.1e}, cosine {cosine:.6f})"
        return EngineChoice(candidate, dim, reason, error, cosine)
    reason = (
        f"{candidate.name} batches differ from each probe alone (relative error {error:.1e},"
        f" cosine {cosine:.6f}); encoding one at a time, which is right but slow"
    )
    log.warning("self-test: %s", reason)
    return EngineChoice(alone, dim, reason, error, cosine)


def compare(rows: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, float]:
    """Largest `max |row - truth| / max |truth|` and smallest cosine, over float32 `[n, C]`.

    NaN where a row is not finite.
    """
    rows64, truth64 = rows.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(rows64 - truth64).max(axis=1) / np.abs(truth64).max(axis=1)
        dots = (rows64 * truth64).sum(axis=1)
        norms = np.linalg.norm(rows64, axis=1) * np.linalg.norm(truth64, axis=1)
        return float(errors.max()), float((dots / norms).min())


def agrees(error: float, cosine: float, dtype: str) -> bool:
    """Whether rows are as near to the states alone as their dtype allows; never so for NaN."""
    return error <= MAX_RELATIVE_ERROR if dtype == "float32" else cosine >= MIN_COSINE


class _Reached(Exception):  # noqa: N818  (not an error)
    """The wanted layer is reached; the rest of the model need not run."""


class _LayerTap:
    """Runs the base model and gives one hidden state, without making the others."""

    def __init__(self, model: Model, layer: int) -> None:
        self._base = model.base
        blocks = _blocks(model)
        count = int(model.config.get_text_config().num_hidden_layers)
        if not -count - 1 <= layer <= count:
            raise ModelError(
                f"--layer {layer}: the model has hidden states {-count - 1} to {count}"
            )
        index = layer if layer >= 0 else count + 1 + layer
        self._block = None
        if index < count:
            if blocks is None:
                raise ModelError(f"--layer {layer}: cannot tell the layers of this model apart")
            self._block = blocks[index]
            self._require_same_as_transformers(model, layer, index)

    def _require_same_as_transformers(self, model: Model, layer: int, index: int) -> None:
        """Not every architecture records its hidden states before each block; Mamba does not."""
        ids = torch.arange(8, device=model.device)[None, :]  # (1, T)
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            states = self._base(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            ).hidden_states
            same = torch.equal(self.hidden(ids, mask), states[index])
        if not same:
            raise ModelError(f"--layer {layer}: only -1 is supported for this model")

    def hidden(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The hidden state, (B, T) to (B, T, C)."""
        if self._block is None:
            return self._run(input_ids, mask)
        seen: list[torch.Tensor] = []
        with _stop_before(self._block, seen):
            self._run(input_ids, mask)
        return seen[0]

    def _run(self, input_ids: torch.Tensor, mask: torch.Tensor) -> Any:
        try:
            output = self._base(
                input_ids=input_ids, attention_mask=mask, use_cache=False, return_dict=True
            )
        except _Reached:
            return None
        return output.last_hidden_state


@contextmanager
def _stop_before(block: Any, seen: list[torch.Tensor]) -> Iterator[None]:
    """Keeps what enters a block, which is the hidden state before it, and stops there."""

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _blocks(model: Model) -> Any | None:
    """The model's list of layers: the one module list as long as the model is deep."""
    count = int(model.config.get_text_config().num_hidden_layers)
    lists = [
        module
        for module in model.base.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return lists[0] if lists else None
