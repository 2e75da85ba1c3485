"""A run's own rows against the same states encoded alone, before the cache is finished."""

import logging
import random
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
        rows: How many of the sample were compared.
        not_compared: How many do not fit the memory alone.
        seed: Seed of the draw.
        max_relative_error: Largest `max |row - alone| / max |alone|`.
        min_cosine: Smallest cosine.
    """

    rows: int
    not_compared: int
    seed: int
    max_relative_error: float
    min_cosine: float

    def to_json(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


def verify(writer: CacheWriter, encoder: Encoder, *, sample: int) -> Verification | None:
    """Encodes a random sample of a writer's new rows one at a time and compares.

    The rows are read back from where the writer stored them, so that what is compared is what will
    be in the cache. Returns `None` where there is nothing to compare.

    Raises:
        EncodingError: If no row of the sample can be compared.
        VerificationError: If a row differs beyond the tolerance of the dtype, or the model alone
            makes none. The writer's rows are then marked, so that no later run resumes from them.
    """
    candidates = writer.new_rows()
    if not len(candidates) or sample < 1:
        return None
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)  # noqa: S311  (a sample, not a secret)
    numbers = sorted(draw.sample(candidates.tolist(), min(sample, len(candidates))))
    states, stored = writer.read(numbers)
    tokens = encoder.prompts.tokenize(states)
    rows, wrong = _rows_alone(states, tokens, encoder)
    compared, not_compared = [*rows], len(states) - len(rows) - len(wrong)
    if not_compared == len(states):
        raise EncodingError(
            f"none of {len(states)} sampled rows can be verified: alone they need more memory than"
            " there is. What is encoded is saved; run again when there is more, or with"
            " --verify-sample 0"
        )
    for i in compared:
        one, alone = slice(i, i + 1), rows[i][None, :]
        if not all_agree(stored[one], alone, tokens.lengths[one], encoder.model.dtype):
            error, cosine = compare(stored[one], alone)
            wrong.append(f"{states[i][:60]!r} (relative error {error:.1e}, cosine {cosine:.6f})")
    if wrong:
        reason = f"{len(wrong)} of {len(states)} sampled rows are not those of the state alone"
        where = writer.work_folder()
        writer.reject(reason)
        raise VerificationError(
            f"{reason}: {'; '.join(wrong[:3])}. Nothing was written; the rows in {where} are"
            " marked as wrong. Run again with --overwrite to encode them anew; --engine alone"
            " encodes them one at a time"
        )
    error, cosine = compare(stored[compared], np.stack([*rows.values()]))
    return Verification(len(compared), not_compared, seed, error, cosine)


def _rows_alone(
    states: list[str], tokens: Tokens, encoder: Encoder
) -> tuple[dict[int, NDArray[np.float32]], list[str]]:
    """The rows of those states that fit the memory alone, by place, and what the model fails on."""
    rows: dict[int, NDArray[np.float32]] = {}
    failed = []
    for i, state in enumerate(states):
        try:
            rows[i] = alone_at_last(encoder, tokens[i])
        except TextFailedError as error:
            failed.append(f"{state[:60]!r} ({error})")
        except EncodingError as error:
            log.warning("%r is not verified: %s", state[:60], error)
    return rows, failed


def alone_at_last(encoder: Encoder, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The row of one sequence alone, tried once more where the model fails.

    No run is thrown away for one failure that does not come again.

    Raises:
        EncodingError: As of `Encoder.run_alone`.
        TextFailedError: As of `Encoder.run_alone`.
        ModelError: As of `Encoder.run_alone`.
    """
    try:
        return encoder.run_alone(sequence)
    except TextFailedError as error:
        log.warning("%s; trying once more", error)
    return encoder.run_alone(sequence)
