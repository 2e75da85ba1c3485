"""A run's stored embeddings against the unbatched reference, before the cache is finished."""

import logging
import math
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import CacheWriter
from ebm_encode.encoder import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import EncodingError, TextFailedError, VerificationError
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

LEAST_SAMPLE = 32
"""Embeddings that are drawn at least."""
_ONE_IN = 1000
"""Of larger runs one embedding in so many is drawn."""
_CONFIDENCE = 0.95
_MOST_OF_THE_WAY = 0.25
"""How far an embedding may be on the way from its own reference to another state's. At half of the
way it is as near to the one as to the other."""
_SAME = 1e-6
"""References that differ by less than this, relative to their norm, are the same embedding."""
_EXTREMES = 8
"""For each so many draws one more embedding is taken for its length."""


def sample_size(count: int) -> int:
    """How many of so many new embeddings are drawn unless the user says how many."""
    return max(LEAST_SAMPLE, math.ceil(count / _ONE_IN))


@dataclass(frozen=True)
class Verification:
    """How near the stored embeddings of a random sample are to the unbatched reference.

    Attributes:
        rows: How many embeddings were compared: those drawn, their neighbours in text order, and
            some for their length.
        drawn: How many of these were drawn, one from each of as many strata of equal size.
        not_compared: How many do not fit the memory at batch size 1.
        indistinct: Pairs of states that rounding cannot tell apart in this dtype.
        seed: Seed of the draw.
        max_relative_error: Largest `max |embedding - reference| / max |reference|`.
        min_cosine: Smallest cosine.
        nearest_other: How far an embedding is at most on the way from its own reference to another
            sampled state's: 0 at its own, 1 at the other's.
        wrong_at_most: The largest share of wrong embeddings that this sample does not rule out with
            95 % confidence.
    """

    rows: int
    drawn: int
    not_compared: int
    indistinct: int
    seed: int
    max_relative_error: float
    min_cosine: float
    nearest_other: float
    wrong_at_most: float

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


@dataclass
class _Sample:
    """Stored embeddings of a sample, and what the reference gives for them.

    Attributes:
        states: The states.
        stored: Their embeddings as stored, float32 `[n, dim]`.
        tokens: Their sequences.
        drawn: Which of them count for the bound.
        references: The embeddings at batch size 1, by place.
        wrong: Why embeddings are wrong, by place.
    """

    states: list[str]
    stored: NDArray[np.float32]
    tokens: Tokens
    drawn: set[int]
    references: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)

    def forget(self, i: int, error: EncodingError) -> None:
        """Skips one that there is no memory to compare."""
        log.warning("%r is not verified: %s", self.states[i][:60], error)
        self.references.pop(i, None)


def verify(writer: CacheWriter, encoder: Encoder, *, sample: int | None) -> Verification | None:
    """Encodes a random sample of a writer's new embeddings at batch size 1 and compares.

    They are read back from where the writer stored them, so that what is compared is what will
    be in the cache. Each must be within rounding of its own reference, and nearer to it than to
    that of any other state of the sample. Neighbours are sampled together, as it is among them
    that embeddings change places.

    Args:
        writer: An open writer; its new embeddings are in the order in which they were encoded.
        encoder: What encoded them.
        sample: How many are drawn; `None`: see `sample_size`. None are if it is 0.

    Returns:
        What was found; `None` where there is nothing to compare.

    Raises:
        EncodingError: If no embedding of the sample can be compared.
        VerificationError: If an embedding is wrong, or the model makes none at batch size 1. The
            writer's work folder is then marked, so that no later run resumes from them.
    """
    numbers = writer.new_rows()
    count = sample_size(len(numbers)) if sample is None else sample
    if not len(numbers) or count < 1:
        return None
    seed = random.SystemRandom().randrange(2**32)
    taken = _draw(writer, encoder, numbers, count, np.random.default_rng(seed))
    _encode(taken, encoder)
    _compare_with_own(taken, encoder)
    farthest, indistinct = _compare_with_others(taken, encoder)
    not_compared = len(taken.states) - len({*taken.references, *taken.wrong})
    if not_compared == len(taken.states):
        raise EncodingError(
            f"none of {len(taken.states)} sampled embeddings can be verified: out of memory at"
            " batch size 1\nhint: what is encoded is saved; run again with more memory, or with"
            " --verify-sample 0"
        )
    _refuse_wrong(writer, taken)
    compared = [*taken.references]
    drawn = len(taken.drawn.intersection(compared))
    error, cosine = compare(taken.stored[compared], np.stack([*taken.references.values()]))
    return Verification(
        rows=len(compared),
        drawn=drawn,
        not_compared=not_compared,
        indistinct=indistinct,
        seed=seed,
        max_relative_error=error,
        min_cosine=cosine,
        nearest_other=farthest,
        wrong_at_most=0.0 if len(compared) == len(numbers) else wrong_at_most(drawn),
    )


def wrong_at_most(drawn: int) -> float:
    """The largest share of wrong embeddings that a sample without any does not rule out.

    With a share `p` of all wrong, a draw of one from each of `n` strata of equal size meets none of
    them with probability at most `(1 - p)^n`; the share at which that is 5 %.
    """
    return 1.0 if drawn == 0 else float(1 - (1 - _CONFIDENCE) ** (1 / drawn))


def _draw(
    writer: CacheWriter,
    encoder: Encoder,
    numbers: NDArray[np.uint64],
    count: int,
    rng: np.random.Generator,
) -> _Sample:
    """One embedding of each stratum of the run, the next one to each, and extreme lengths."""
    strata = np.array_split(np.arange(len(numbers)), min(count, len(numbers)))
    drawn = {int(rng.choice(stratum)) for stratum in strata}
    beside = {min(place + 1, len(numbers) - 1) for place in drawn}
    others = rng.choice(len(numbers), min(4 * count, len(numbers)), replace=False)
    places = sorted({int(place) for place in others} - drawn - beside)
    extremes = set[int]()
    if places:
        states, _ = writer.read([int(numbers[place]) for place in places])
        lengths = encoder.prompts.tokenize(states).lengths
        by_length = np.argsort(lengths, kind="stable")
        ranks = np.linspace(0, len(places) - 1, max(2, count // _EXTREMES)).round().astype(int)
        extremes = {places[int(by_length[rank])] for rank in ranks}
    taken = sorted(drawn | beside | extremes)
    states, stored = writer.read([int(numbers[place]) for place in taken])
    own = {k for k, place in enumerate(taken) if place in drawn}
    return _Sample(states, stored, encoder.prompts.tokenize(states), own)


def _encode(taken: _Sample, encoder: Encoder) -> None:
    """Adds the references, and the states that the model fails on."""
    for i in range(len(taken.states)):
        try:
            taken.references[i] = unbatched_with_retry(encoder, taken.tokens[i])
        except TextFailedError as error:
            taken.wrong[i] = str(error)
        except EncodingError as error:
            taken.forget(i, error)


def _compare_with_own(taken: _Sample, encoder: Encoder) -> None:
    """Finds embeddings that are not within rounding of their own reference."""
    for i, reference in [*taken.references.items()]:
        try:
            own = encoder.is_embedding_of(taken.tokens[i], taken.stored[i], reference)
        except EncodingError as error:
            taken.forget(i, error)
            continue
        if not own:
            error_size, cosine = compare(taken.stored[i][None], reference[None])
            taken.wrong[i] = f"relative error {error_size:.1e}, cosine {cosine:.6f}"


def _compare_with_others(taken: _Sample, encoder: Encoder) -> tuple[float, int]:
    """Finds embeddings that are too near to another state's reference.

    Where an embedding stands between its own reference `r` and that of another state `s` is its
    projection `(e - r)(s - r) / |s - r|^2`: 0 at its own, 1 at the other's. Rounding in many
    dimensions hardly moves it along one line, so this tells neighbours apart whose cosine is
    nearly 1.

    Returns how far the farthest valid embedding is, and how many pairs cannot be told apart.
    """
    places = [i for i in taken.references if i not in taken.wrong]
    if not places:
        return 0.0, 0
    references = np.stack([taken.references[i] for i in taken.references]).astype(np.float64)
    keys = [*taken.references]
    farthest, indistinct = 0.0, 0
    for i in places:
        own = taken.references[i].astype(np.float64)
        ways = references - own  # (n, C)
        lengths = (ways * ways).sum(axis=1)
        moved = (taken.stored[i].astype(np.float64) - own) @ ways.T
        others = [
            k
            for k, j in enumerate(keys)
            if lengths[k] > (_SAME * np.linalg.norm(own)) ** 2
            and not np.array_equal(taken.tokens[i], taken.tokens[j])
        ]
        if not others:
            continue
        place = max(others, key=lambda k: moved[k] / lengths[k])
        at = float(moved[place] / lengths[place])
        if at <= _MOST_OF_THE_WAY:
            farthest = max(farthest, at)
            continue
        try:
            reach = 2 * encoder.selection.unbatched.spread_along(taken.tokens[i], ways[place])
        except EncodingError as error:
            taken.forget(i, error)
            continue
        if at <= reach:
            indistinct += 1
        else:
            other = taken.states[keys[place]]
            taken.wrong[i] = f"its embedding is nearer to that of {other[:60]!r} than allowed"
    return farthest, indistinct


def _refuse_wrong(writer: CacheWriter, taken: _Sample) -> None:
    if not taken.wrong:
        return
    reason = f"{len(taken.wrong)} of {len(taken.states)} sampled embeddings are not those of their"
    reason += " states"
    where = writer.work_folder()
    writer.reject(reason)
    examples = [f"{taken.states[i][:60]!r} ({why})" for i, why in [*taken.wrong.items()][:3]]
    raise VerificationError(
        f"{reason}: {'; '.join(examples)}. Nothing was written; {where} is marked as wrong"
        "\nhint: run again with --overwrite to re-encode all; --engine unbatched encodes"
        " at batch size 1, without a server"
    )


def unbatched_with_retry(encoder: Encoder, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The embedding of one sequence at batch size 1, tried once more where the model fails.

    No run is thrown away for one failure that does not come again.

    Raises:
        EncodingError: As of `Encoder.run_unbatched`.
        TextFailedError: As of `Encoder.run_unbatched`.
        ModelError: As of `Encoder.run_unbatched`.
    """
    try:
        return encoder.run_unbatched(sequence)
    except TextFailedError as error:
        log.warning("%s; trying once more", error)
    return encoder.run_unbatched(sequence)
