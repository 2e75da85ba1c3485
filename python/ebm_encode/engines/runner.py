"""Token sequences through a model, batch by batch, by the best engine that is right.

Knows nothing of texts: what a sequence means and whether its row is good is the encoder's concern.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from traceback import clear_frames
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.batch import Done, PassError, UnderWay
from ebm_encode.engines.budget import Budget
from ebm_encode.engines.calibration import Calibration, Memory, calibrate, rate_of
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.noise import ROUNDED_RUNS, rounded, unstable_tokens
from ebm_encode.engines.reference import Deviation, Reference, deviation, embedding_deviation
from ebm_encode.engines.rows import Rows
from ebm_encode.engines.selection import Selection
from ebm_encode.engines.selftest import EngineChoice
from ebm_encode.errors import EncodingError, ModelError, TextFailedError, one_line
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

T = TypeVar("T")

_WORTH_COMPILING = 300.0
"""Seconds of work below which compiling a model's layers cannot pay."""
_PAYS = 1.03
"""Compiled layers are used if they are faster by this."""


class Runner:
    """Runs sequences through one model.

    Args:
        model: The model.
        selection: The engine in use, and what it was compared for.
        budget: The most that one forward pass may hold, as the selection's engines have it.

    Attributes:
        selection: As given.
        budget: As given, until it is calibrated.
        calibration: What was measured, if it was.
    """

    def __init__(self, model: Model, selection: Selection, budget: Budget) -> None:
        self.selection = selection
        self.budget = budget
        self.calibration: Calibration | None = None
        self._model = model
        self._alone, self._lock = selection.alone, selection.lock
        # Slots of the smallest batch that ran out of memory, if any did.
        self._too_large: int | None = None

    @property
    def choice(self) -> EngineChoice:
        """The engine in use, and why."""
        return self.selection.choice

    @property
    def compiled(self) -> bool:
        """Whether the model's layers run compiled."""
        return self.selection.compiled

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> Calibration:
        """Sets the budget to what the device is fastest with, tried on sequences like those to be.

        No row is made of it. Later calls of `run` divide sequences anew.

        Args:
            tokens: Some of the sequences, at least one.
            times: How many times as much as these is to come.
        """
        memory, engine = Memory(self._model.device), self.selection.engine
        stretched = set(self._model.stretching(tokens.lengths))
        usable = tokens.select([i for i in range(len(tokens)) if i not in stretched])
        with self._lock:
            try:
                found = calibrate(engine, self.budget, usable, dim=self.choice.dim, memory=memory)
            except Exception as error:  # noqa: BLE001  (a run meets it, too, and knows what to do)
                log.warning("sizes are not calibrated: %s", one_line(error))
                found = Calibration(self.budget.tokens, {})
            if found.rate is not None and self.selection.tries_compiling:
                through = sum(engine.size([usable[i] for i in b]) for b in engine.plan(usable))
                if times * through / found.rate >= _WORTH_COMPILING:
                    found = replace(found, compiled=self._try_compiled(usable, found.rate, memory))
        self.calibration = found
        return found

    def settings(self) -> dict[str, Any]:
        """What was measured to be best; JSON values only."""
        return {"max_batch_tokens": self.budget.tokens, "compiled": self.compiled}

    def resume(self, settings: dict[str, Any]) -> None:
        """Takes the settings of an earlier run, so that rows come out as its own did."""
        self.budget.tokens = settings["max_batch_tokens"]
        if settings["compiled"] and self.selection.may_compile and not self.compiled:
            with self._lock:
                self.selection.compile()

    def _try_compiled(self, tokens: Tokens, rate: float, memory: Memory) -> float | None:
        """Compiles the layers if that is faster than `rate`; returns what was measured."""
        if not self.selection.compile():
            return None
        engine, compiled = self.selection.engine, None
        try:
            compiled = rate_of(engine, tokens, dim=self.choice.dim, memory=memory)
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            log.info("layers are not compiled: %s", one_line(error))
        if compiled is None or compiled < _PAYS * rate:
            self.selection.uncompile()
        return compiled

    def run(
        self,
        tokens: Tokens,
        into: Rows | None = None,
        wanted: Callable[[list[int]], bool] = lambda _: True,
    ) -> Iterator[Done]:
        """Runs sequences in batches.

        Args:
            tokens: Sequences of at least one token each.
            into: Where the rows go; if not given, into memory of each batch's own.
            wanted: Asked of each batch whether it is to be run; what it answers does not change
                how the sequences are divided.

        Raises:
            ModelError: If the model does not run any more, or an engine that was forced is wrong.
        """
        refused: set[int] = set()
        stretched = dict.fromkeys(self._model.stretching(tokens.lengths))
        for i in stretched:
            if wanted([i]):
                yield self._alone_batch(tokens, i, into)
        rest = [i for i in range(len(tokens)) if i not in stretched]
        while rest:
            choice, failure = self.choice, None
            plan = choice.engine.plan(tokens.select(rest))
            batches = _longest_first([[rest[k] for k in batch] for batch in plan], tokens)
            chosen = [batch for batch in batches if wanted(batch)]
            left = {i for batch in chosen for i in batch}
            try:
                for done in self._each(choice, tokens, chosen, into):
                    if not self._still_right(tokens, done, refused):
                        break  # and plan anew, for the engine that is used from here on
                    _take_back(done, refused)
                    yield done
                    left.difference_update(done.indices, done.failed)
            except PassError as error:
                failure = error
            if failure is not None:  # and no more is handled, which would hold the pass's memory
                failed = self._go_on_after(failure, tokens)
                left.difference_update(failed)
                if failed:
                    yield Done([], Rows.new(0, choice.dim), failed, choice)
            rest = [i for i in rest if i in left]

    def run_alone(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The row of one sequence, float32 `[dim]`: the model on it alone, no padding.

        Raises:
            EncodingError: If it does not fit the memory.
            TextFailedError: If the model fails on it.
            ModelError: If the model does not run any more.
        """
        rows = Rows.new(1, self.choice.dim)
        self._unbatched(sequence, lambda: self._alone.forward([sequence], rows).wait())
        return rows.row(0)

    def reference(self, sequence: NDArray[np.uint32], seed: int | None = None) -> Reference:
        """As `run_alone`, with the hidden states of all tokens.

        Args:
            sequence: Token ids.
            seed: Change the input of each layer by one rounding at random, by this seed.
        """
        rows = Rows.new(1, self.choice.dim)
        run = partial(self._alone.states, [sequence], rows, [0])
        return Reference(self._unbatched(sequence, run, seed), rows.array)

    def spread(self, sequence: NDArray[np.uint32]) -> float:
        """How far rounding alone may move the embedding of a sequence, relative L2.

        The reference is run again with the input of each layer changed by one rounding at random;
        the largest change of some such runs.
        """
        row, moved = self._rounded(sequence)
        return float(np.linalg.norm(moved, axis=1).max() / np.linalg.norm(row))

    def spread_along(self, sequence: NDArray[np.uint32], way: NDArray[np.float64]) -> float:
        """How far rounding alone may move the embedding along a vector `[dim]`, in its lengths."""
        _, moved = self._rounded(sequence)
        return float(np.abs(moved @ way).max() / (way @ way))

    def _rounded(
        self, sequence: NDArray[np.uint32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The embedding of a sequence, `[dim]`, and its changes by roundings, `[runs, dim]`."""
        row = self.run_alone(sequence).astype(np.float64)
        seeds = range(ROUNDED_RUNS)
        return row, np.stack([self.reference(sequence, seed).rows[0] - row for seed in seeds])

    def _unbatched(
        self, sequence: NDArray[np.uint32], run: Callable[[], T], seed: int | None = None
    ) -> T:
        """Runs one sequence by the reference; tells whose fault it is if that fails."""
        failure = None
        try:
            # Roundings within the lock: no other thread's pass may meet them.
            with self._lock, nullcontext() if seed is None else rounded(self._model, seed):
                return run()
        except Exception as error:  # noqa: BLE001  (a model's code may raise anything)
            failure = error
        clear_frames(failure.__traceback__)  # which hold the tensors of the pass
        free_memory()
        if is_out_of_memory(failure):
            raise EncodingError(f"out of memory at batch size 1 ({len(sequence)} tokens)")
        reason = (
            f"the model fails on its {len(sequence)} tokens, unbatched too ({one_line(failure)})"
        )
        if self.selection.works():
            raise TextFailedError(reason) from failure
        raise ModelError(f"{self._model.name}: {reason}") from failure

    def _alone_batch(self, tokens: Tokens, i: int, into: Rows | None) -> Done:
        rows = into.select([i]) if into else Rows.new(1, self.choice.dim)
        try:
            rows.row(0)[:] = self.run_alone(tokens[i])
        except EncodingError as error:
            return Done([], rows.select([]), {i: error}, self.choice)
        return Done([i], rows, {}, self.choice, {i})

    def _each(
        self, choice: EngineChoice, tokens: Tokens, batches: list[list[int]], into: Rows | None
    ) -> Iterator[Done]:
        """The batches in their order; a device works on the next one while one is in use."""
        before: UnderWay | None = None
        for indices in batches:
            batch = self._start(choice, tokens, indices, into)
            if before is not None:
                yield _arrived(before)
            before = batch
            if before.here:
                yield _arrived(before)
                before = None
        if before is not None:
            yield _arrived(before)

    def _start(
        self, choice: EngineChoice, tokens: Tokens, indices: list[int], into: Rows | None
    ) -> UnderWay:
        rows = into.select(indices) if into else Rows.new(len(indices), choice.dim)
        batch = UnderWay(indices, rows, {}, choice, [])
        self._forward(tokens, indices, rows, batch)
        return batch

    def _forward(self, tokens: Tokens, indices: list[int], rows: Rows, batch: UnderWay) -> None:
        """Runs some of a batch, in halves where the memory does not hold it."""
        engine, sequences = batch.choice.engine, [tokens[i] for i in indices]
        slots = engine.size(sequences)
        splittable = len(indices) > 1
        if not (splittable and self._too_large is not None and slots >= self._too_large):
            try:
                with self._lock:
                    arrival = engine.forward(sequences, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise PassError(batch.choice, indices, error) from error
            else:
                batch.arrivals.append(arrival)
                batch.parts.append(indices)
                if (at_once := engine.at_once(slots)) > batch.at_once:
                    batch.at_once, batch.together = at_once, indices
                return
            free_memory()
            if not splittable:
                try:
                    rows.row(0)[:] = self.run_alone(sequences[0])
                    batch.alone.add(indices[0])
                except EncodingError as error:
                    batch.failed[indices[0]] = error
                return
            self._too_large = slots
            log.warning("out of memory at %d tokens; going on with smaller batches", slots)
        half = len(indices) // 2
        for part in (range(half), range(half, len(indices))):
            self._forward(tokens, [indices[k] for k in part], rows.select(part), batch)

    def _still_right(self, tokens: Tokens, done: Done, refused: set[int]) -> bool:
        """Compares some of a batch with the reference, if it is larger than any before.

        These are the longest; the shortest, which must not suffer from it; and the one with the
        last token of the largest pass. Returns whether they are exact; if not, another engine is
        chosen.

        Args:
            tokens: All sequences.
            done: The batch.
            refused: Gets the sequences that the model alone makes no finite row of: there is no
                right one.

        Raises:
            ModelError: If the engine was forced.
            PassError: If the engine fails where it is run once more for its hidden states.
        """
        choice, engine = done.choice, done.choice.engine
        if engine is self._alone:
            return True
        compared = self.selection.compared  # read first: it is of this choice, or that has changed
        if choice is not self.choice:  # another thread has found it wrong meanwhile
            return False
        lengths = tokens.lengths
        # Places in the batch, the longest sequence's first.
        own = [k for k, i in enumerate(done.indices) if i not in done.alone]
        longest = max((int(lengths[done.indices[k]]) for k in own), default=0)
        if compared.covers(longest, done.at_once):
            return True
        own.sort(key=lambda k: -lengths[done.indices[k]])
        orders, last = [own, own[::-1]], None
        if done.at_once > compared.at_once:
            together = done.together
            at = engine.last_at_once([tokens[i] for i in together])
            last, places = together[at], {i: k for k, i in enumerate(done.indices)}
            orders.append([places[i] for i in together[at::-1]])
        references = self._first_of_each(orders, tokens, done, refused)
        if not references:
            return True
        sample = [done.indices[k] for k in references]
        found = self._deviation(tokens, done, references)
        longest = int(lengths[sample].max())
        if found.exact:
            self.selection.agreed(choice, longest, done.at_once if last in sample else 0)
            return True
        reason = (
            f"{engine.name} differs from the unbatched reference at {longest} tokens ({found};"
            f" allowed {self.selection.noise.bound:.1e})"
        )
        self.selection.go_on_without(choice, reason, tokens.select(sample))
        return False

    def _deviation(self, tokens: Tokens, done: Done, references: dict[int, Reference]) -> Deviation:
        """How far some of a batch are from their references, by place in the batch.

        The engine runs the passes of the batch once more, for their hidden states: in pooled
        embeddings a few wrong tokens do not show.
        """
        engine, wanted = done.choice.engine, {done.indices[k]: k for k in references}
        states: dict[int, NDArray[np.float32]] = {}
        failure: Exception | None = None
        for part in done.parts:
            own = [k for k, i in enumerate(part) if i in wanted]
            try:
                with self._lock:
                    found = engine.states(
                        [tokens[i] for i in part], Rows.new(len(part), self.choice.dim), own
                    )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise PassError(done.choice, list(part), error) from error
                failure = error
                break
            states.update(
                (wanted[part[k]], own_states) for k, own_states in zip(own, found, strict=True)
            )
        rows = np.stack([done.rows.row(k) for k in references])
        reference = Reference(
            [one.states[0] for one in references.values()],
            np.concatenate([one.rows for one in references.values()]),
        )
        noise, pooling = self.selection.noise, self._alone.pooling
        if failure is None:
            ordered, sequences = (
                [states[k] for k in references],
                [tokens[done.indices[k]] for k in references],
            )

            def unstable(i: int) -> NDArray[np.bool_]:
                def states(seed: int) -> NDArray[np.float32]:
                    return self.reference(sequences[i], seed).states[0]

                return unstable_tokens(states, reference.states[i], noise)

            try:
                return deviation(
                    rows, ordered, reference, pooling=pooling, noise=noise, unstable=unstable
                )
            except EncodingError as error:
                failure = error
        clear_frames(failure.__traceback__)
        free_memory()
        log.warning("no memory to compare hidden states; embeddings are compared only")
        return embedding_deviation(rows, reference, noise=noise)

    def _first_of_each(
        self, orders: list[list[int]], tokens: Tokens, done: Done, refused: set[int]
    ) -> dict[int, Reference]:
        """The references of some sequences of a batch, by their place in it.

        Args:
            orders: Places in the batch; of each order it is the first one with a finite row.
            tokens: All sequences.
            done: The batch.
            refused: As of `_still_right`.
        """
        references: dict[int, Reference] = {}
        without, too_large = set[int](), 0
        for order in orders:
            for k in order:
                if k in without:
                    continue
                if k in references:
                    break
                sequence = tokens[done.indices[k]]
                try:
                    found = self.reference(sequence)
                except TextFailedError as error:
                    log.warning("a text is refused: %s", error)
                    refused.add(done.indices[k])
                except EncodingError:
                    too_large = max(too_large, len(sequence))
                else:
                    if np.isfinite(found.rows).all():
                        references[k] = found
                        break
                    refused.add(done.indices[k])
                without.add(k)
        if too_large:
            log.warning(
                "embeddings of up to %d tokens are not compared: out of memory at batch size 1",
                too_large,
            )
        return references

    def _go_on_after(self, failure: PassError, tokens: Tokens) -> dict[int, EncodingError]:
        """Finds out what is at fault; if it is the engine, chooses another.

        Returns the sequences that the model fails on.

        Raises:
            ModelError: If the model does not run any more, or the engine was forced.
        """
        clear_frames(failure.error.__traceback__)  # which hold the tensors of the pass
        choice = failure.choice
        if choice is not self.choice:  # another thread has found it wrong meanwhile
            return {}
        fitting: list[int] = []
        failed: dict[int, EncodingError] = {}
        for i in failure.indices:
            try:
                self.run_alone(tokens[i])
            except TextFailedError as error:
                failed[i] = error
            except EncodingError:  # too long for the memory alone; nothing is known of it
                continue
            else:
                fitting.append(i)
        if failed:
            return failed
        reason = f"{choice.engine.name} failed ({one_line(failure.error)})"
        if choice.engine is self._alone:
            raise ModelError(f"{self._model.name}: {reason}") from failure.error
        if fitting:
            reason = (
                f"{choice.engine.name} failed where each sequence alone does not"
                f" ({one_line(failure.error)})"
            )
        self.selection.go_on_without(choice, reason, tokens.select(fitting[:1]))
        return {}


def _arrived(batch: UnderWay) -> Done:
    """The batch, once its rows are there."""
    try:
        return batch.done()
    except Exception as error:  # a device tells only now
        raise PassError(batch.choice, batch.indices, error) from error


def _longest_first(batches: list[list[int]], tokens: Tokens) -> list[list[int]]:
    """The batch with the longest sequence comes first; compared alone, it vouches for the rest."""
    lengths = tokens.lengths
    first = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    return [batches[first], *batches[:first], *batches[first + 1 :]]


def _take_back(done: Done, refused: set[int]) -> None:
    """Makes rows that are not to be had NaN, so that they fail the checks of whoever gets them."""
    for k, i in enumerate(done.indices):
        if i in refused:
            done.rows.row(k)[:] = np.nan
