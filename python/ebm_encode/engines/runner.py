"""Token sequences through a model, pass by pass, by the best engine that is exact.

Knows nothing of texts: what a sequence means and whether its embedding is valid is the encoder's
concern.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from traceback import clear_frames

import numpy as np

from ebm_encode.engines.comparison import Comparison
from ebm_encode.engines.engine import Engine, EngineError
from ebm_encode.engines.memory import MemoryLimit, free_memory, is_out_of_memory
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.engines.selection import Selection
from ebm_encode.engines.server import SERVER_ERRORS, ServerEngine
from ebm_encode.engines.work import UnderWay, W, Work
from ebm_encode.errors import (
    EncodingError,
    ModelError,
    TextFailedError,
    one_line,
)
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)


class Runner:
    """Runs sequences through one model. Several threads may share it.

    Args:
        model: The model.
        selection: The engine in use.
    """

    def __init__(self, model: Model, selection: Selection) -> None:
        self._model, self._selection = model, selection
        self._unbatched = selection.unbatched
        self._comparison = Comparison(selection)
        self._memory = MemoryLimit()

    def run(
        self,
        tokens: Tokens,
        slots: OutputSlots | None = None,
        wanted: Callable[[list[int]], bool] = lambda _: True,
    ) -> Iterator[Pass]:
        """Runs sequences; yields each pass once its embeddings are there and may be used.

        Args:
            tokens: Sequences of at least one token each.
            slots: Where the embeddings go; if not given, into new memory of each pass.
            wanted: Asked of each batch whether it is to be run; what it answers does not change
                how the sequences are divided.

        Raises:
            ModelError: If the model does not run any more, or a forced engine is not exact.
        """
        for _, done in self.run_all([Work(tokens, slots, wanted)]):
            yield done

    def run_all(self, works: Iterable[W]) -> Iterator[tuple[W, Pass]]:
        """As `run`, of several sets of sequences one after the other; a device never waits between.

        The first passes of a set start while the last ones of the set before are under way.

        Raises:
            ModelError: If the model does not run any more, or a forced engine is not exact.
        """
        under_way: deque[UnderWay[W]] = deque()
        for work in works:
            for done in self._apart(work):
                while under_way:
                    yield from self._finished(under_way.popleft(), now=work)
                yield work, done
            engine = self._selection.choice.engine
            for batch in self._batches(engine, work):
                if work.failure is not None or engine is not self._selection.choice.engine:
                    break
                under_way.extend(self._started(engine, work, batch))
                while len(under_way) > 1 or (under_way and under_way[0].done.done):
                    yield from self._finished(under_way.popleft(), now=work)
            else:
                if work.failure is None:
                    continue  # what is left of it is under way
            while under_way:
                yield from self._finished(under_way.popleft(), now=work)
            yield from ((work, done) for done in self._run_rest(work))
        while under_way:
            yield from self._finished(under_way.popleft())

    def _apart(self, work: Work) -> Iterator[Pass]:
        """Runs those sequences of a set that share no batch."""
        tokens = work.tokens
        apart = dict.fromkeys([*self._model.stretching(tokens.lengths), *self._too_long(tokens)])
        work.left.difference_update(apart)
        for i in apart:
            if work.wanted([i]):
                yield self._run_unbatched(tokens, i, work.slots)

    def _batches(self, engine: Engine, work: Work) -> list[list[int]]:
        """The batches of what is left of a set that are to be run; the rest of it is given up."""
        if not work.left:
            return []
        batches = _longest_first(_plan(engine, work.tokens, sorted(work.left)), work.tokens)
        wanted = [batch for batch in batches if work.wanted(batch)]
        work.left = {i for batch in wanted for i in batch}
        return wanted

    def _started(self, engine: Engine, work: W, batch: list[int]) -> Iterator[UnderWay[W]]:
        """Starts the pass over a batch, or its parts; notes in `work` what fails."""
        try:
            for started in self._start(engine, work.tokens, batch, work.slots):
                yield UnderWay(engine, work, started)
        except EngineError as error:
            work.failure = _without_tensors(error)

    def _finished(
        self, under_way: UnderWay[W], now: Work | None = None
    ) -> Iterator[tuple[W, Pass]]:
        """Waits for a pass and checks it; if it fails, runs the rest of its set.

        Not that of `now`, which is left to the caller.
        """
        engine, work, done = under_way.engine, under_way.work, under_way.done
        try:
            self._use(engine, work, _waited_for(done, engine))
        except EngineError as error:
            work.failure = work.failure or _without_tensors(error)
        else:
            yield work, done
        if work.failure is not None and work is not now:
            yield from ((work, done) for done in self._run_rest(work))

    def _use(self, engine: Engine, work: Work, done: Pass) -> None:
        """Checks a finished pass and counts it.

        Raises:
            EngineError: If the engine is not exact, fails, or is not in use any more.
        """
        self._comparison.check(engine, done, work.tokens, work.refused)
        work.left.difference_update(done.indices, done.failed)
        if not done.unbatched:
            self._memory.fitted()

    def _run_rest(self, work: Work) -> Iterator[Pass]:
        """Runs what is left of a set after a failure, which is resolved first."""
        while work.failure is not None or work.left:
            # Not where it is caught: there an exception holds the memory of its pass.
            failure, work.failure = work.failure, None
            failed = {} if failure is None else self._resolve(failure, work.tokens)
            if failed:
                work.left.difference_update(failed)
                yield Pass.without_embedding(failed)
            engine = self._selection.choice.engine
            batches = self._batches(engine, work)
            try:
                for done in self._passes(engine, work.tokens, batches, work.slots):
                    self._use(engine, work, done)
                    yield done
            except EngineError as error:
                work.failure = _without_tensors(error)

    def _too_long(self, tokens: Tokens) -> list[int]:
        """The sequences that a server does not take."""
        engine = self._selection.choice.engine
        if not isinstance(engine, ServerEngine):
            return []
        found = engine.too_long(tokens)
        if found:
            log.warning(
                "%d states are longer than the %s server takes (%d tokens); this process encodes"
                " them at batch size 1",
                len(found),
                engine.name,
                engine.longest,
            )
        return found

    def _resolve(self, failure: EngineError, tokens: Tokens) -> dict[int, EncodingError]:
        """Finds out what is at fault: a text, which is refused, or the engine, which is replaced.

        Returns the sequences that the model fails on, with the reason.

        Raises:
            ModelError: If the model does not run any more, or the engine was forced.
        """
        engine, reason, sample = failure.engine, str(failure), failure.indices
        if failure.failed and engine is self._selection.choice.engine:
            failed, sample = self._run_each(failure.indices, tokens)
            if failed:
                return failed
            if engine is self._unbatched.engine:
                raise ModelError(f"{self._model.name}: batch size 1 failed ({reason})") from failure
            where = " where each sequence succeeds unbatched" if sample else ""
            reason = f"{engine.name} failed{where} ({reason})"
        self._selection.fall_back(engine, reason, tokens.select(sample))
        return {}

    def _run_each(
        self, indices: Sequence[int], tokens: Tokens
    ) -> tuple[dict[int, EncodingError], list[int]]:
        """Runs sequences unbatched; gives those that the model fails on, and one that it runs."""
        failed: dict[int, EncodingError] = {}
        too_long: dict[int, EncodingError] = {}
        fine: list[int] = []
        for i in indices:
            try:
                self._unbatched.embedding(tokens[i])
            except TextFailedError as error:
                failed[i] = error
            except EncodingError as error:  # no memory even unbatched: nothing is known of it
                too_long[i] = error
            else:
                fine.append(i)
        # Where none runs, nothing speaks against the engine.
        return (failed, fine[:1]) if failed or fine else (too_long, [])

    def _passes(
        self,
        engine: Engine,
        tokens: Tokens,
        batches: list[list[int]],
        slots: OutputSlots | None,
    ) -> Iterator[Pass]:
        """The passes in their order; a device works on the next one while one is in use.

        Raises:
            EngineError: If one fails, and not for want of memory.
        """
        under_way: deque[Pass] = deque()
        for batch in batches:
            for started in self._start(engine, tokens, batch, slots):
                under_way.append(started)
                while len(under_way) > 1 or (under_way and under_way[0].done):
                    yield _waited_for(under_way.popleft(), engine)
        while under_way:
            yield _waited_for(under_way.popleft(), engine)

    def _start(
        self, engine: Engine, tokens: Tokens, indices: list[int], slots: OutputSlots | None
    ) -> Iterator[Pass]:
        """Starts the pass over a batch, or over its halves where the memory does not hold it."""
        sequences = [tokens[i] for i in indices]
        size = engine.size(sequences)
        if len(indices) == 1 or self._memory.allows(size):
            own = self._slots(slots, indices)
            try:
                with self._selection.lock:
                    started = engine.forward(sequences, own)
            except SERVER_ERRORS:
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise EngineError(engine, one_line(error), indices, failed=True) from error
            else:
                started.indices = indices
                started.tokens_per_forward = engine.tokens_per_forward(size)
                yield started
                return
            free_memory()  # not where the exception is handled, which holds the tensors of the pass
            if len(indices) == 1:
                yield self._run_unbatched(tokens, indices[0], slots)
                return
            self._memory.ran_out(size)
            log.warning("out of memory at %d tokens; continuing with smaller batches", size)
        half = len(indices) // 2
        for part in (indices[:half], indices[half:]):
            yield from self._start(engine, tokens, part, slots)

    def _run_unbatched(self, tokens: Tokens, i: int, slots: OutputSlots | None) -> Pass:
        own = self._slots(slots, [i])
        try:
            own.slot(0)[:] = self._unbatched.embedding(tokens[i])
        except EncodingError as error:
            return Pass.without_embedding({i: error})
        return Pass(own, indices=[i], unbatched=True)

    def _slots(self, slots: OutputSlots | None, indices: Sequence[int]) -> OutputSlots:
        if slots is not None:
            return slots.select(indices)
        return OutputSlots.new(len(indices), self._selection.choice.dim)


def _without_tensors(error: EngineError) -> EngineError:
    """An exception whose frames hold no tensors of its pass any more."""
    if error.__cause__ is not None:
        clear_frames(error.__cause__.__traceback__)
    return error


def _plan(engine: Engine, tokens: Tokens, indices: list[int]) -> list[list[int]]:
    return [[indices[k] for k in batch] for batch in engine.plan(tokens.select(indices))]


def _longest_first(batches: list[list[int]], tokens: Tokens) -> list[list[int]]:
    """The batch with the longest sequence first: checked against the reference, it covers shorter.

    All others stay in their order.
    """
    lengths = tokens.lengths
    first = int(np.argmax([lengths[batch].max() for batch in batches]))
    return [batches[first], *batches[:first], *batches[first + 1 :]]


def _waited_for(under_way: Pass, engine: Engine) -> Pass:
    try:
        under_way.wait()
    except SERVER_ERRORS:
        raise
    except Exception as error:  # a device reports only now
        raise EngineError(engine, one_line(error), under_way.indices, failed=True) from error
    return under_way
