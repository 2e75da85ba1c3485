"""The unbatched reference, and how far an engine is from it.

Hidden states are compared token by token, not pooled: a mean over hundreds of tokens hides a few
wrong ones. The pooling is compared separately, with the mean of the engine's own states: both are
float32 sums of the same numbers, so there the dtype of the model excuses nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.noise import NoiseFloor, token_errors
from ebm_encode.options import Pooling

_16_BIT = ("bfloat16", "float16")

MIN_COSINE = 0.9995
"""Embeddings in a 16-bit dtype are at least this similar to the reference in that dtype."""

_MOST_UNSTABLE = 0.1
"""Rounding sends at most this share of all tokens elsewhere."""
_POOLING_ERROR = 1e-5
"""Pooled values may differ from the exact mean by this, relative to the mean absolute value."""


@dataclass(frozen=True)
class Reference:
    """What the model gives for some sequences, each at batch size 1.

    Attributes:
        states: The hidden state of each token, float32 (T, C), one array per sequence.
        embeddings: The embeddings, float32 `[n, C]`.
    """

    states: list[NDArray[np.float32]]
    embeddings: NDArray[np.float32]

    def select(self, indices: Sequence[int]) -> "Reference":
        """That of some of the sequences."""
        return Reference([self.states[i] for i in indices], self.embeddings[list(indices)])


@dataclass(frozen=True)
class Deviation:
    """How far an engine is from the reference on some sequences.

    Attributes:
        error: Largest `max |embedding - reference| / max |reference|` of an embedding.
        cosine: Smallest cosine of an embedding.
        token_error: Largest relative L2 difference of a token's hidden state.
        pooling_error: Largest difference of an embedding from the pooled states of the engine
            itself, in units of what is allowed.
        exact: Whether all of this is within what rounding explains.
    """

    error: float
    cosine: float
    token_error: float
    pooling_error: float
    exact: bool

    def __str__(self) -> str:
        """The figures in words."""
        words = f"largest token error {self.token_error:.1e}, embedding error {self.error:.1e}"
        words += f", cosine {self.cosine:.6f}"
        if not self.pooling_error <= 1:
            words += f", pooling off by {self.pooling_error:.1e} times what is allowed"
        return words


def deviation(
    embeddings: NDArray[np.float32],
    states: Sequence[NDArray[np.float32]],
    reference: Reference,
    *,
    pooling: Pooling,
    noise: NoiseFloor,
    unstable: Callable[[int], NDArray[np.bool_]],
) -> Deviation:
    """Compares an engine with the reference.

    Args:
        embeddings: The engine's embeddings, float32 `[n, C]`.
        states: The hidden states that it pooled them from, (T, C) per sequence.
        reference: The unbatched reference of the same sequences.
        pooling: How states are pooled.
        noise: The noise floor of the model.
        unstable: Asked for sequences with tokens beyond the bound, by index: which tokens of it
            rounding moves that far. Others are wrong.
    """
    error, cosine = compare(embeddings, reference.embeddings)
    tokens = [
        token_errors([own], [truth]) for own, truth in zip(states, reference.states, strict=True)
    ]
    pooled = pooling_error(embeddings, states, pooling)
    exact = pooled <= 1
    beyond = [(i, own > noise.bound) for i, own in enumerate(tokens) if (own > noise.bound).any()]
    count = sum(int(far.sum()) for _, far in beyond)
    if count > max(1, _MOST_UNSTABLE * sum(map(len, tokens))):
        exact = False
    # Where no token is beyond it, neither may an embedding be; one unstable token moves its own.
    if not beyond and noise.dtype not in _16_BIT:
        exact = exact and error <= noise.bound
    exact = exact and not any((far & ~unstable(i)).any() for i, far in beyond)
    largest = max((float(own.max(initial=0.0)) for own in tokens), default=0.0)
    return Deviation(error, cosine, largest, pooled, bool(exact))


def embedding_deviation(
    embeddings: NDArray[np.float32], reference: Reference, *, noise: NoiseFloor
) -> Deviation:
    """As `deviation`, where there are no hidden states to compare; far weaker in 16 bits."""
    error, cosine = compare(embeddings, reference.embeddings)
    return Deviation(error, cosine, 0.0, 0.0, embeddings_agree(error, cosine, noise))


def pooling_error(
    embeddings: NDArray[np.float32], states: Sequence[NDArray[np.float32]], pooling: Pooling
) -> float:
    """How far embeddings are from the pooled states, in units of what is allowed; NaN counts."""
    worst = 0.0
    for embedding, own in zip(embeddings.astype(np.float64), states, strict=True):
        values = own.astype(np.float64)
        exact = values[-1] if pooling == "last" else values.mean(axis=0)
        size = np.abs(values[-1:] if pooling == "last" else values).mean(axis=0)
        with np.errstate(invalid="ignore"):
            off = np.abs(embedding - exact) / (_POOLING_ERROR * size + np.finfo(np.float32).tiny)
        worst = max(worst, float(np.nan_to_num(off, nan=np.inf).max()))
    return worst


def embeddings_agree(error: float, cosine: float, noise: NoiseFloor) -> bool:
    """Whether embeddings are as near to their references as the dtype allows; never so for NaN.

    Args:
        error: The largest relative error.
        cosine: The smallest cosine.
        noise: The noise floor of the model.
    """
    return cosine >= MIN_COSINE if noise.dtype in _16_BIT else error <= noise.bound


def compare(embeddings: NDArray[np.float32], truth: NDArray[np.float32]) -> tuple[float, float]:
    """Largest `max |embedding - truth| / max |truth|` and smallest cosine, over float32 `[n, C]`.

    NaN where an embedding is not finite.
    """
    ours64, truth64 = embeddings.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.abs(ours64 - truth64).max(axis=1) / np.abs(truth64).max(axis=1)
        dots = (ours64 * truth64).sum(axis=1)
        norms = np.linalg.norm(ours64, axis=1) * np.linalg.norm(truth64, axis=1)
        return float(errors.max()), float((dots / norms).min())
