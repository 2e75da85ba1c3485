"""Passes compared with the unbatched reference while an engine is in use."""

import logging
from collections.abc import Iterable, Sequence
from traceback import clear_frames

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.engine import Engine, EngineError
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.noise import unstable_tokens
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.engines.reference import Deviation, Reference, deviation, embedding_deviation
from ebm_encode.engines.selection import Selection
from ebm_encode.engines.server import SERVER_ERRORS, ServerEngine
from ebm_encode.errors import (
    EncodingError,
    TextFailedError,
    one_line,
)
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)


class Comparison:
    """Compares some sequences of a pass with the reference, if it is larger than any before.

    These are the longest; the shortest, which must not suffer from it; and the one with the last
    token of the pass.

    Args:
        selection: The engine in use.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._unbatched = selection.unbatched

    def check(self, engine: Engine, done: Pass, tokens: Tokens, refused: set[int]) -> None:
        """Makes sure that the embeddings of a finished pass may be used.

        Args:
            engine: What ran the pass.
            done: The pass.
            tokens: All sequences of the call.
            refused: Gets the sequences without a finite reference: they have no valid embedding,
                and their slots become NaN, so that they fail the row checks.

        Raises:
            EngineError: If the engine is not exact, fails, or is not in use any more.
        """
        if not done.unbatched and done.indices:
            self._check(engine, done, tokens, refused)
        for k, i in enumerate(done.indices):
            if i in refused:
                done.slots.slot(k)[:] = np.nan

    def _check(self, engine: Engine, done: Pass, tokens: Tokens, refused: set[int]) -> None:
        choice = self._selection.choice
        if engine is not choice.engine:  # another thread has fallen back meanwhile
            raise EngineError(engine, f"{engine.name} is not in use any more", done.indices)
        lengths = tokens.lengths[done.indices]
        new_length = not choice.compared.covers(int(lengths.max()), 0)
        new_size = not choice.compared.covers(0, done.tokens_per_forward)
        if engine is self._unbatched.engine or not (new_length or new_size):
            return
        by_length = np.argsort(-lengths, kind="stable").tolist()
        orders: list[Iterable[int]] = [by_length, by_length[::-1]]
        last = None
        if new_size:
            last = engine.last_packed_index([tokens[i] for i in done.indices])
            orders.append(range(last, -1, -1))
        references = self._first_of_each(orders, done.indices, tokens, refused)
        if not references:
            return
        found = self._deviation(engine, done, tokens, references)
        longest = int(lengths[[*references]].max())
        if not found.exact:
            raise EngineError(
                engine,
                f"{engine.name} differs from the unbatched reference at {longest} tokens ({found};"
                f" allowed {self._selection.noise.bound:.1e})",
                [done.indices[k] for k in references],
            )
        size = done.tokens_per_forward if last in references else 0
        self._selection.mark_verified(engine, longest, size)

    def _first_of_each(
        self,
        orders: Sequence[Iterable[int]],
        indices: Sequence[int],
        tokens: Tokens,
        refused: set[int],
    ) -> dict[int, Reference]:
        """References of a pass's sequences by place: of each order the first that has one."""
        references: dict[int, Reference] = {}
        without, too_large = set[int](), 0
        for order in orders:
            for k in order:
                if k in without:
                    continue
                if k in references:
                    break
                sequence = tokens[indices[k]]
                try:
                    found = self._unbatched.reference(sequence)
                except TextFailedError as error:
                    log.warning("a text is refused: %s", error)
                    refused.add(indices[k])
                except EncodingError:
                    too_large = max(too_large, len(sequence))
                else:
                    if np.isfinite(found.embeddings).all():
                        references[k] = found
                        break
                    refused.add(indices[k])
                without.add(k)
        if too_large:
            log.warning(
                "embeddings of up to %d tokens are not compared: out of memory at batch size 1",
                too_large,
            )
        return references

    def _deviation(
        self, engine: Engine, done: Pass, tokens: Tokens, references: dict[int, Reference]
    ) -> Deviation:
        """How far some sequences of a pass are from their references, by place in the pass."""
        places = [*references]
        embeddings = np.stack([done.slots.slot(k) for k in places])
        reference = Reference(
            [references[k].states[0] for k in places],
            np.concatenate([references[k].embeddings for k in places]),
        )
        noise = self._selection.noise
        if isinstance(engine, ServerEngine) and not engine.gives_states:
            return embedding_deviation(embeddings, reference, noise=noise)

        def unstable(i: int) -> NDArray[np.bool_]:
            sequence = tokens[done.indices[places[i]]]

            def states(seed: int) -> NDArray[np.float32]:
                return self._unbatched.reference(sequence, seed).states[0]

            return unstable_tokens(states, reference.states[i], noise)

        try:
            return deviation(
                embeddings,
                self._states(engine, done, tokens, places),
                reference,
                pooling=self._unbatched.engine.pooling,
                noise=noise,
                unstable=unstable,
            )
        except (EncodingError, _OutOfMemoryError) as error:
            clear_frames(error.__traceback__)
        free_memory()
        log.warning("no memory to compare hidden states; embeddings are compared only")
        return embedding_deviation(embeddings, reference, noise=noise)

    def _states(
        self, engine: Engine, done: Pass, tokens: Tokens, places: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Hidden states of some sequences, for which the engine runs the pass once more.

        In pooled embeddings a few wrong tokens do not show.
        """
        sequences = [tokens[i] for i in done.indices]
        scratch = OutputSlots.new(len(sequences), self._selection.choice.dim)
        try:
            with self._selection.lock:
                return engine.states(sequences, scratch, places)
        except SERVER_ERRORS:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise EngineError(engine, one_line(error), done.indices, failed=True) from error
            clear_frames(error.__traceback__)
            raise _OutOfMemoryError from None


class _OutOfMemoryError(Exception):
    """There is no memory for hidden states."""
