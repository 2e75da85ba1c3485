"""A run's own rows against the same states encoded alone, before the cache is finished."""

import logging
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode._core import CacheWriter
from ebm_encode.encoder import Encoder
from ebm_encode.engines import all_agree, compare
from ebm_encode.errors import EncodingError, TextFailedError, VerificationError
from ebm_encode.tokens import Tokens

log = logging.getLogger(__name__)

DEFAULT_SAMPLE = 32


@dataclass(frozen=True)
class Verification:
    """How near the stored rows of a random sample are to the states alone.

    Attributes:
        rows: Size of the sample.
        seed: Seed of the draw.
        max_relative_error: Largest `max |row - alone| / max |alone|`.
        min_cosine: Smallest cosine.
    """

    rows: int
    seed: int
    max_relative_error: float
    min_cosine: float

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


def verify(
    writer: CacheWriter,
    encoder: Encoder,
    *,
    sample: int,
    refuse: Callable[[str, EncodingError], None],
) -> Verification | None:
    """Encodes a random sample of a writer's new rows one at a time and compares.

    The rows are read back from where the writer stored them, so that what is compared is what will
    be in the cache. Returns `None` where there is nothing to compare.

    Args:
        writer: Has the rows.
        encoder: Made them.
        sample: How many.
        refuse: Called with a state that the model alone fails on, so that its row is not right.

    Raises:
        VerificationError: If a row differs beyond the tolerance of the dtype. The writer's rows are
            then marked, so that no later run resumes from them.
    """
    candidates = writer.new_rows()
    if not len(candidates) or sample < 1:
        return None
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)  # noqa: S311  (a sample, not a secret)
    numbers = sorted(draw.sample(candidates.tolist(), min(sample, len(candidates))))
    states, stored = writer.read(numbers)
    tokens = encoder.prompts.tokenize(states)
    rows = _rows_alone(states, tokens, encoder, refuse)
    if not rows:
        return None
    compared = [*rows]
    states, stored = [states[i] for i in compared], stored[compared]
    tokens, alone = tokens.select(compared), np.stack([*rows.values()])
    wrong = []
    for i, state in enumerate(states):
        one = slice(i, i + 1)
        if not all_agree(stored[one], alone[one], tokens.lengths[one], encoder.model.dtype):
            error, cosine = compare(stored[one], alone[one])
            wrong.append(f"{state[:60]!r} (relative error {error:.1e}, cosine {cosine:.6f})")
    if wrong:
        reason = f"{len(wrong)} of {len(states)} sampled rows differ from the state alone"
        where = writer.work_folder()
        writer.reject(reason)
        raise VerificationError(
            f"{reason}: {'; '.join(wrong[:3])}. Nothing was written; the rows in {where} are"
            " marked as wrong. Run again with --overwrite to encode them anew; --engine alone"
            " encodes them one at a time"
        )
    error, cosine = compare(stored, alone)
    return Verification(len(states), seed, error, cosine)


def _rows_alone(
    states: list[str],
    tokens: Tokens,
    encoder: Encoder,
    refuse: Callable[[str, EncodingError], None],
) -> dict[int, NDArray[np.float32]]:
    """The rows of those states that can be encoded alone, by their place."""
    rows: dict[int, NDArray[np.float32]] = {}
    for i, state in enumerate(states):
        try:
            rows[i] = encoder.run_alone(tokens[i])
        except TextFailedError as error:
            refuse(state, error)
        except EncodingError as error:
            log.warning("%r is not verified: %s", state[:60], error)
    return rows
