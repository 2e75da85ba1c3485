"""The noise floor of a model: how far rounding moves its hidden states.

Two correct ways to run a model differ by rounding, and how much that is depends on the model: on
its depth, its weights, its dtype. So it is measured. The unbatched reference is run once more with
the input of every layer changed by one rounding at random. The median over tokens is the noise
floor: a median, because a mixture-of-experts model may send a token to another expert for the sake
of a rounding. Such tokens may be beyond the bound, but only those that roundings do send elsewhere
(`unstable_tokens`).

Measured on CPU, self-test prompts, random models of 16 architectures and Llamas of up to 80 layers:
the largest relative L2 difference of a token between a correct engine and the reference was 0.2 to
1.1 times this median in 16 bits and 1.0 to 2.5 times in float32; broken engines begin at 5 times.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.engines.layer import blocks_of
from ebm_encode.loading.model import DTYPES, Model

FLOAT32_FLOOR = 1e-5
"""In float32 this much is always allowed, relative to the largest value."""

_FACTOR = {"float32": 6.0, "bfloat16": 2.0, "float16": 2.0}
"""How many times the noise floor an exact engine may be off."""
_MOST = 0.3
"""Whatever the noise: beyond this a token's hidden state is not the same any more."""
_UNKNOWN = {"float32": FLOAT32_FLOOR, "bfloat16": 0.04, "float16": 0.005}
"""Bounds where the layers of a model cannot be reached, so that nothing can be measured."""
ROUNDED_RUNS = 8
"""Runs with other roundings by which it is found what rounding can do to one sequence."""


@dataclass(frozen=True)
class NoiseFloor:
    """What rounding does to a model's hidden states, and so what an engine may be off by.

    Attributes:
        dtype: Name of the compute dtype.
        median: Median over tokens of the relative L2 change by rounding; NaN if not measured.
        bound: The largest relative L2 difference of a token that is taken for rounding.
    """

    dtype: str
    median: float
    bound: float

    @classmethod
    def of(cls, dtype: str, errors: NDArray[np.float64]) -> "NoiseFloor":
        """From the relative change of each token, float64 `[n]`; empty if nothing was measured."""
        known = errors[np.isfinite(errors)]
        if not len(known):
            return cls(dtype, math.nan, _UNKNOWN.get(dtype, FLOAT32_FLOOR))
        median = float(np.median(known))
        floor = FLOAT32_FLOOR if dtype not in _FACTOR or dtype == "float32" else _rounding(dtype)
        bound = min(max(floor, _FACTOR.get(dtype, 6.0) * median), _MOST)
        return cls(dtype, median, bound)

    def to_json(self) -> dict[str, float | None]:
        """The values by name."""
        median = None if math.isnan(self.median) else self.median
        return {"median": median, "bound": self.bound}


@contextmanager
def rounded(model: Model, seed: int = 0) -> Iterator[bool]:
    """Within this the input of each layer is changed by one rounding, at random but seeded.

    It affects every thread that runs the model: enter it under the lock of its engines.

    Gives whether it is: not where the layers of the model cannot be found.
    """
    blocks = blocks_of(model)
    change = _change(model, seed)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            return (change(args[0]), *args[1:]), kwargs
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}
        return None

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks or ()]
    try:
        yield bool(handles)
    finally:
        for handle in handles:
            handle.remove()


def _change(model: Model, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    generator = torch.Generator(model.device).manual_seed(seed)
    eps = _rounding(model.dtype) * (1 if model.dtype == "float32" else 2)

    def change(values: torch.Tensor) -> torch.Tensor:
        if not values.is_floating_point():
            return values
        # Uniform in (-1, 1) roundings of float32, and in 16 bits two, of which half are lost again.
        shift = torch.rand(values.shape, generator=generator, device=values.device) * 2 - 1
        return (values.float() * (1 + eps * shift)).to(values.dtype)

    return change


def _rounding(dtype: str) -> float:
    """The largest relative error of one rounding."""
    return float(torch.finfo(DTYPES.get(dtype, torch.float32)).eps / 2)


def unstable_tokens(
    states: Callable[[int], NDArray[np.float32]],
    reference: NDArray[np.float32],
    noise: NoiseFloor,
) -> NDArray[np.bool_]:
    """Which tokens of a sequence rounding moves beyond the bound, bool `[T]`.

    Args:
        states: Runs the sequence unbatched within `rounded` of a seed; gives its hidden states,
            float32 (T, C).
        reference: These without any roundings.
        noise: The noise floor of the model.
    """
    moved = np.zeros(len(reference), bool)
    for seed in range(ROUNDED_RUNS):
        moved |= token_errors([states(seed)], [reference]) > noise.bound
    return moved


def token_errors(
    states: Sequence[NDArray[np.float32]], reference: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Relative L2 difference of each token's hidden state, float64 `[total tokens]`.

    `|h - ref| / |ref|`; infinite where a state is not finite.

    Args:
        states: One array (T, C) per sequence.
        reference: Those of the unbatched reference, of the same shapes.
    """
    errors = []
    for own, truth in zip(states, reference, strict=True):
        own64, truth64 = own.astype(np.float64), truth.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            off = np.linalg.norm(own64 - truth64, axis=1)
            size = np.linalg.norm(truth64, axis=1)
            error = np.where(off == 0, 0.0, off / size)
        errors.append(np.where(np.isnan(error), np.inf, error))
    return np.concatenate([np.zeros(0), *errors])
