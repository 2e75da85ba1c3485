"""Embeddings that exist already: reused from earlier caches, or removed if other code made them."""

from collections.abc import Sequence

from ebm_encode._core import CacheWriter
from ebm_encode.bulk.reference_embeddings import ReferenceEmbeddings
from ebm_encode.data.side_files import OVERLONG, Journal, read_list, side_file
from ebm_encode.encoder import Encoder
from ebm_encode.identity.former import as_given_identity, former_identity, with_the_same_tokens
from ebm_encode.prompts.tokens import CHUNK_STATES, in_chunks


class Reuse:
    """Takes embeddings of earlier caches into a writer.

    Args:
        encoder: The encoder; its identity is the writer's.
        writer: An open writer.
        reference: By which it is told whether a cache's encoder gave the same numbers.
        overlong: Gets the records of prompts that were cut.
    """

    def __init__(
        self,
        encoder: Encoder,
        writer: CacheWriter,
        reference: ReferenceEmbeddings,
        overlong: Journal,
    ) -> None:
        self._encoder, self._writer = encoder, writer
        self._reference, self._overlong = reference, overlong

    def take(self, caches: Sequence[str], states: list[str]) -> list[str]:
        """Takes what the caches hold of some states; returns the states that none holds.

        Raises:
            IdentityMismatchError: If a cache is of another encoder, or of one that gave other
                embeddings.
        """
        if not caches:
            return states
        for cache in caches:
            self._take(cache, states)
        taken = self._writer.contains_many(states)
        reused = [state for state, own in zip(states, taken, strict=True) if own]
        self._note_overlong(reused, caches)
        return [state for state, own in zip(states, taken, strict=True) if not own]

    def remove_saved(self) -> None:
        """Removes, durably, what an interrupted run with other code has saved."""
        numbers = self._writer.new_rows().tolist()
        for start in range(0, len(numbers), CHUNK_STATES):
            for state in self._writer.read(numbers[start : start + CHUNK_STATES])[0]:
                self._writer.retract(state)
        self._writer.checkpoint()
        self._reference.note(self._writer.work_folder())

    def _take(self, cache: str, states: list[str]) -> None:
        self._reference.require_same(cache)
        plain = as_given_identity(cache, self._encoder.identity)
        if plain is not None:  # the states are converted, so what it holds of them is in the format
            self._writer.adopt(cache, states, made_by=plain)
            return
        former = former_identity(cache, self._encoder.identity)
        if former is None:
            self._writer.adopt(cache, states)
            return
        for chunk in in_chunks(states):
            same = with_the_same_tokens(self._encoder.prompts, chunk, former)
            self._writer.adopt(cache, same, made_by=former)

    def _note_overlong(self, states: list[str], caches: Sequence[str]) -> None:
        """Lists reused states whose prompts were cut, and what that made equal."""
        same = {
            state: {"same_as": record["same_as"]}
            for cache in caches
            for state, record in read_list(side_file(str(cache), OVERLONG)).items()
            if "same_as" in record
        }
        for chunk in in_chunks(states):
            reports = self._encoder.screen(self._encoder.prompts.tokenize(chunk))
            self._overlong.add(
                [
                    {"state": state, "tokens": report.tokens, "action": "truncated"}
                    | same.get(state, {})
                    for state, report in zip(chunk, reports, strict=True)
                    if report.truncated
                ]
            )
