"""Embeddings of a bulk run that are in doubt: retried unbatched, then quarantined; and equal ones.

Also whether what is stored is what it should be, where a new embedding equals it.
"""

import logging
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ebm_encode import _core
from ebm_encode._core import BadRow, CacheWriter
from ebm_encode.bulk.outcome import Outcome
from ebm_encode.bulk.verification import unbatched_with_retry
from ebm_encode.data.side_files import Journal
from ebm_encode.encoder import Encoder
from ebm_encode.engines.reference import compare
from ebm_encode.errors import EncodingError, TextFailedError, VerificationError
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)


class Recheck:
    """Saves embeddings that pass the row checks, and decides about the others.

    Args:
        encoder: The encoder.
        writer: An open writer.
        outcome: What the run did; counts what happens here.
        overlong: Records of prompts that were cut.
        settings: Path of the run's settings, which are removed where they gave wrong embeddings.
    """

    def __init__(
        self,
        encoder: Encoder,
        writer: CacheWriter,
        outcome: Outcome,
        overlong: Journal,
        settings: str,
    ) -> None:
        self._encoder, self._writer = encoder, writer
        self._outcome, self._overlong, self._settings = outcome, overlong, settings

    def save(self, states: list[str], embeddings: NDArray[np.float32], tokens: Tokens) -> None:
        """Saves the embeddings of some states, float32 `[n, dim]`; bad ones are retried."""
        verdicts = self._writer.append(states, np.ascontiguousarray(embeddings))
        for i, bad in enumerate(verdicts):
            if bad is not None and not self._may_be_equal(states[i], embeddings[i], tokens[i], bad):
                self.retry(states[i], bad)
        self._outcome.encoded += sum(self._writer.contains_many(states))

    def retry(self, state: str, bad: BadRow) -> None:
        """Re-encodes a refused state at batch size 1; what is refused again is quarantined."""
        log.warning("%r: %s; re-encoding it at batch size 1", state[:60], bad.reason)
        self._outcome.retried_alone += 1
        tokens = self._encoder.prompts.tokenize([state])
        length = int(tokens.full_lengths[0])
        try:
            embedding = self._encoder.run_unbatched(tokens[0])
        except EncodingError as error:
            self.quarantine(state, kind_of(error), str(error), length)
            return
        again = self._writer.append([state], embedding[None, :])[0]
        if again is None or self._may_be_equal(state, embedding, tokens[0], again):
            return
        if again.duplicate_of is not None:  # of two equal embeddings the stored one may be wrong
            self._check_stored(again.duplicate_of)
        self.quarantine(state, again.kind, again.reason, length)

    def quarantine(self, state: str, kind: str, reason: str, tokens: int | None = None) -> None:
        """Lists a state without a valid embedding.

        Args:
            state: The state.
            kind: Why, in a word.
            reason: Why, in a sentence.
            tokens: Length of its prompt, if known.
        """
        log.warning("quarantined %r: %s", state[:60], reason)
        record: dict[str, Any] = {"state": state, "kind": kind, "reason": reason}
        record["tokens"] = (
            int(self._encoder.prompts.tokenize([state]).full_lengths[0])
            if tokens is None
            else tokens
        )
        self._outcome.quarantined.append(record)

    def require_embedding(self, state: str, sequence: NDArray[np.uint32]) -> None:
        """Makes sure that a saved state, of which a batch now made no embedding, still has one.

        Raises:
            VerificationError: If it has none at batch size 1 either.
        """
        try:
            embedding = unbatched_with_retry(self._encoder, sequence)
        except TextFailedError as error:
            self.reject(state, str(error))
        except EncodingError:  # no memory for it at batch size 1; it did fit when it was saved
            return
        if not np.isfinite(embedding).all():
            self.reject(state, "unbatched it has none that is finite")

    def reject(self, state: str, why: str) -> NoReturn:
        """Marks what is stored as wrong, for later runs too.

        Raises:
            VerificationError: Always.
        """
        reason = f"the stored embedding of {state[:60]!r} is not its own ({why})"
        self._writer.reject(reason)
        wrong = f"{reason}. Run again with --overwrite to re-encode all states"
        raise self.without_settings(VerificationError(wrong))

    def without_settings(self, error: VerificationError) -> VerificationError:
        """The error, once the settings with which embeddings were wrong are removed."""
        _core.remove_file(self._settings)
        compiled = self._encoder.selection.compiled
        hint = "; its layers were compiled: add --compile off" if compiled else ""
        return VerificationError(f"{error}{hint}")

    def _may_be_equal(
        self, state: str, embedding: NDArray[np.float32], tokens: NDArray[np.uint32], bad: BadRow
    ) -> bool:
        """Accepts an embedding that equals others of states that are the same to the model."""
        looked_at: set[str] = set()
        while bad.duplicate_of is not None and bad.duplicate_of not in looked_at:
            looked_at.add(bad.duplicate_of)
            other = self._writer.stored(bad.duplicate_of)
            if other is None:
                return False
            both = self._encoder.prompts.tokenize([other[0], state])
            if not self._encoder.classes.same(tokens, both[0]):
                return False
            if (both.full_lengths > both.lengths).any() and np.array_equal(tokens, both[0]):
                self._note_same(state, other[0], int(both.full_lengths[1]))
            self._writer.allow_equal(state, other[0])
            again = self._writer.append([state], embedding[None, :])[0]
            if again is None:
                return True
            bad = again
        return False

    def _note_same(self, state: str, other: str, tokens: int) -> None:
        """Lists a state whose cut prompt is that of another state."""
        action = "truncated" if tokens > (self._encoder.prompts.max_length or tokens) else "kept"
        record = {"state": state, "tokens": tokens, "action": action, "same_as": other}
        self._overlong.add([record], replace=True)

    def _check_stored(self, key: str) -> None:
        """Compares a stored embedding with the reference; if it is wrong, nothing stored is safe.

        Raises:
            EncodingError: If there is no memory for that.
            VerificationError: If it is wrong.
        """
        stored = self._writer.stored(key)
        if stored is None:
            return
        state, embedding = stored
        tokens = self._encoder.prompts.tokenize([state])
        try:
            reference = unbatched_with_retry(self._encoder, tokens[0])
        except TextFailedError as error:
            self.reject(state, str(error))
        if not self._encoder.is_embedding_of(tokens[0], embedding, reference):
            self.reject(state, f"cosine {compare(embedding[None], reference[None])[1]:.6f}")


def kind_of(error: EncodingError) -> str:
    """Why a state is quarantined, in a word."""
    return "model_failed" if isinstance(error, TextFailedError) else "out_of_memory"
