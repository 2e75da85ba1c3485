"""Which engine to use for a model: the best one whose rows are those of each sequence alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.engine import Engine
from ebm_encode.engines.padded import AloneEngine
from ebm_encode.engines.rows import Rows
from ebm_encode.engines.tolerance import FEW, all_agree, compare
from ebm_encode.errors import ModelError
from ebm_encode.tokens import Tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and why.

    Attributes:
        engine: The engine.
        dim: Length of the rows.
        reason: In words; also why better engines were not taken.
        error: Largest relative difference of its rows from each probe alone.
        cosine: Smallest cosine with each probe alone.
        longest: Tokens of the longest probe that was compared.
        worse: The engines to go on with, should this one prove wrong later.
        refused: Why better ones were not taken, of each.
    """

    engine: Engine
    dim: int
    reason: str
    error: float
    cosine: float
    longest: int
    worse: tuple[Engine, ...] = ()
    refused: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The engine's name, the reason, and how far its rows are from the probes alone."""
        finite = np.isfinite([self.error, self.cosine]).all()
        return {
            "name": self.engine.name,
            "reason": self.reason,
            "self_test_relative_error": self.error if finite else None,
            "self_test_cosine": self.cosine if finite else None,
        }


def choose_engine(
    candidates: Sequence[Engine],
    alone: AloneEngine,
    probes: Tokens,
    dtype: str,
    *,
    before: Sequence[str] = (),
) -> EngineChoice:
    """The first of the candidates whose rows of the probes are those of each probe alone.

    Args:
        candidates: Engines, best first.
        alone: The engine that is right by definition; taken where all others fail.
        probes: Sequences that begin alike and differ in length, so that a wrong mask shows, and
            short ones, in whose means a few wrong tokens show.
        dtype: Name of the compute dtype.
        before: Why engines that are no candidates any more were not taken.
    """
    dim = alone.width(probes[int(probes.lengths.argmax())])
    truth = _rows_alone(alone, probes, dim)
    finite = np.flatnonzero(np.isfinite(truth).all(axis=1)).tolist()
    if not finite:
        reason = "the model's rows are not finite even alone; every row will be refused"
        log.warning("self-test: %s", reason)
        return EngineChoice(alone, dim, reason, float("nan"), float("nan"), 0)
    if len(finite) < len(probes):
        log.warning(
            "self-test: %d of %d probes have no finite rows even alone and say nothing",
            len(probes) - len(finite),
            len(probes),
        )
        probes = probes.select(finite)
    truth = truth[finite]
    longest = int(probes.lengths.max())
    refused = [*before]
    for i, engine in enumerate(candidates):
        rows = _rows(engine, probes, dim)
        if isinstance(rows, str):
            refused.append(f"{engine.name} does not work with this model ({rows})")
            continue
        error, cosine = compare(rows, truth)
        if all_agree(rows, truth, probes.lengths, dtype):
            equal = f"equals each probe alone (relative error {error:.1e}, cosine {cosine:.6f})"
            reason = "; ".join([*refused, equal])
            worse = tuple(candidates[i + 1 :])
            return EngineChoice(engine, dim, reason, error, cosine, longest, worse, tuple(refused))
        refused.append(
            f"{engine.name} differs from each probe alone (relative error {error:.1e}, cosine"
            f" {cosine:.6f})"
        )
    reason = "; ".join([*refused, "one at a time, which is right but slow"])
    return EngineChoice(alone, dim, reason, 0.0, 1.0, longest, refused=tuple(refused))


def short_probes(probes: Tokens) -> Tokens:
    """Sequences of few tokens, taken from some probes, that branch after each of their first ones.

    A model that mixes neighbouring tokens otherwise than by attention, by a convolution for
    example, gets the first tokens of each branch wrong. Among many others these change a mean by
    less than the rounding of 16 bits; not so among few.
    """
    ids = probes[int(probes.lengths.argmax())]
    sequences = [ids[:4]]
    for kept in range(4):
        for own in range(1, 4):
            start = len(ids) // 4 + 3 * kept + own
            sequences.append(np.concatenate([ids[:kept], ids[start : start + own]]))
    return Tokens.of([sequence for sequence in sequences if len(sequence) > 0])


def require_engine(choice: EngineChoice, name: str) -> None:
    """Refuses a choice other than the engine asked for.

    Raises:
        ModelError: If the engine of that name failed.
    """
    if choice.engine.name != name:
        raise ModelError(f"--engine {name}: cannot be used for this model: {choice.reason}")


def _rows_alone(alone: AloneEngine, probes: Tokens, dim: int) -> NDArray[np.float32]:
    """The rows of the probes alone; not finite where a model takes no so short a sequence."""
    expected = Rows.new(len(probes), dim)
    for i in range(len(probes)):
        try:
            alone.forward([probes[i]], expected.select([i])).wait()
        except Exception:  # a model's code may raise anything
            if len(probes[i]) > FEW:
                raise
            expected.row(i)[:] = np.nan
    return expected.array


def _rows(engine: Engine, probes: Tokens, dim: int) -> NDArray[np.float32] | str:
    """The rows of the probes in their order, or why there are none."""
    rows = Rows.new(len(probes), dim)
    try:
        for batch in engine.plan(probes):
            engine.trial([probes[i] for i in batch], rows.select(batch)).wait()
    except Exception as error:  # noqa: BLE001  (a model's code may raise anything; then it is not used)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return rows.array
