"""Token sequences through a model, batch by batch, by the best engine that is right.

Knows nothing of texts: what a sequence means and whether its row is good is the encoder's concern.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.engines import (
    AloneEngine,
    Budget,
    Calibration,
    Engine,
    EngineChoice,
    MaskedWindowEngine,
    Memory,
    PaddedEngine,
    Pooling,
    WindowEngine,
    agrees,
    calibrate,
    choose_engine,
    compare,
    rate_of,
)
from ebm_encode.engines.choice import require_engine
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.rows import Arrival, Rows
from ebm_encode.errors import EncodingError, ModelError
from ebm_encode.model import Model, one_line
from ebm_encode.tokens import Tokens

log = logging.getLogger(__name__)

Compile = Literal["auto", "on", "off"]
EngineName = Literal["auto", "shared-prefix", "shared-prefix-mask", "packed", "padded", "alone"]

_WORTH_COMPILING = 300.0
"""Seconds of work below which compiling a model's layers cannot pay."""
_PAYS = 1.03
"""Compiled layers are used if they are faster by this."""


@dataclass(frozen=True)
class Done:
    """A batch whose rows have been written where they belong.

    Attributes:
        indices: Which sequences they are of.
        rows: Their rows, not yet checked.
        failed: Those of the batch that do not fit the memory, with the reason.
        engine: What made them.
    """

    indices: list[int]
    rows: Rows
    failed: dict[int, str]
    engine: Engine


@dataclass(frozen=True)
class _UnderWay:
    """A batch that a device has been told to run.

    Attributes:
        indices: Its sequences.
        rows: Where their rows go.
        failed: Those that do not fit the memory, with the reason.
        engine: What makes them.
        arrivals: What to wait for, one of each part of the batch.
    """

    indices: list[int]
    rows: Rows
    failed: dict[int, str]
    engine: Engine
    arrivals: list[Arrival]

    @property
    def here(self) -> bool:
        """Whether there is nothing to wait for."""
        return all(arrival.here for arrival in self.arrivals)

    def done(self) -> Done:
        """Waits for the rows."""
        for arrival in self.arrivals:
            arrival.wait()
        good = [k for k, i in enumerate(self.indices) if i not in self.failed]
        indices = [self.indices[k] for k in good]
        return Done(indices, self.rows.select(good), self.failed, self.engine)


class Runner:
    """Runs sequences through one model.

    Args:
        model: The model.
        pooling: `mean` over a sequence's tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: The most that one forward pass may hold.
        probes: Sequences for the self-test.
        engine: `auto`, or the one engine to use.
        compile_layers: Whether torch compiles the model's layers; `auto`: if long work is ahead on
            a GPU, and it proves faster.

    Attributes:
        choice: The engine in use, and why.
        budget: As given, until it is calibrated.
        calibration: What was measured, if it was.
        compared: Length of the longest sequence whose row was compared with the sequence alone.

    Raises:
        ModelError: If the model does not run, or the engine asked for fails its self-test.
    """

    def __init__(
        self,
        model: Model,
        pooling: Pooling,
        layer: int,
        budget: Budget,
        *,
        probes: Tokens,
        engine: EngineName = "auto",
        compile_layers: Compile = "auto",
    ) -> None:
        self.budget = budget
        self._may_compile = compile_layers != "off"
        self._tries_compiling = compile_layers == "auto" and model.device.type == "cuda"
        self.calibration: Calibration | None = None
        self._model = model
        self._alone = AloneEngine(model, pooling, layer)
        self._forced = engine != "auto"
        candidates = [
            candidate
            for candidate in _engines(model, pooling, layer, budget)
            if engine in ("auto", candidate.name)
        ]
        stretched = self._stretched(probes)
        if len(stretched) < len(probes):
            probes = probes.select([i for i in range(len(probes)) if i not in stretched])
        try:
            self.choice: EngineChoice = choose_engine(candidates, self._alone, probes, model.dtype)
        except Exception as error:  # a model's code may raise anything
            raise ModelError(f"{model.name}: does not run: {one_line(error)}") from error
        if self._forced:
            require_engine(self.choice, engine)
        self._probes = probes
        self.compared = int(probes.lengths.max())
        # Engines switch the model's attention while they run it.
        self._lock = threading.Lock()
        # Slots of the smallest batch that ran out of memory, if any did.
        self._too_large: int | None = None
        if compile_layers == "on":
            self._compile_or_fail()

    @property
    def compiled(self) -> bool:
        """Whether the model's layers run compiled."""
        engine = self.choice.engine
        return isinstance(engine, WindowEngine) and engine.compiled

    def calibrate(self, tokens: Tokens, *, times: float = 1.0) -> Calibration:
        """Sets the budget to what the device is fastest with, tried on sequences like those to be.

        No row is made of it. Later calls of `run` divide sequences anew.

        Args:
            tokens: Some of the sequences, at least one.
            times: How many times as much as these is to come.
        """
        memory, engine = Memory(self._model.device), self.choice.engine
        stretched = self._stretched(tokens)
        usable = tokens.select([i for i in range(len(tokens)) if i not in stretched])
        with self._lock:
            found = calibrate(engine, self.budget, usable, dim=self.choice.dim, memory=memory)
            if found.rate is not None and self._tries_compiling:
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
        if settings["compiled"] and self._may_compile and not self.compiled:
            with self._lock:
                self._compile()

    def _try_compiled(self, tokens: Tokens, rate: float, memory: Memory) -> float | None:
        """Compiles the layers if that is faster than `rate`; returns what was measured."""
        if not self._compile():
            return None
        engine = self.choice.engine
        assert isinstance(engine, WindowEngine)
        try:
            compiled = rate_of(engine, tokens, dim=self.choice.dim, memory=memory)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            log.info("layers are not compiled: %s", one_line(error))
            compiled = None
        if compiled is None or compiled < _PAYS * rate:
            engine.compile(layers=False)
            free_memory()
        return compiled

    def _compile(self) -> bool:
        """Compiles the layers, if they then pass the self-test; returns whether they do."""
        try:
            self._compile_or_fail()
        except ModelError as error:
            log.info("layers are not compiled: %s", error)
        return self.compiled

    def _compile_or_fail(self) -> None:
        engine = self.choice.engine
        if not isinstance(engine, WindowEngine):
            raise ModelError(f"--compile on: engine {engine.name} runs layers only as they are")
        engine.compile(layers=True)
        choice = choose_engine([engine], self._alone, self._probes, self._model.dtype)
        if choice.engine is not engine:
            engine.compile(layers=False)
            free_memory()
            raise ModelError(f"--compile on: cannot be used for this model: {choice.reason}")
        self.compared = int(self._probes.lengths.max())  # what was compared, ran otherwise

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
        """
        stretched = self._stretched(tokens)
        for i in stretched:
            if wanted([i]):
                yield self._alone_batch(tokens, i, into)
        rest = [i for i in range(len(tokens)) if i not in stretched]
        while rest:
            plan = self.choice.engine.plan(tokens.select(rest))
            batches = _longest_first([[rest[k] for k in batch] for batch in plan], tokens)
            chosen = [batch for batch in batches if wanted(batch)]
            left = {i for batch in chosen for i in batch}
            for done in self._each(tokens, chosen, into):
                if not self._still_right(tokens, done):
                    break  # and plan anew, for the engine that is used from here on
                yield done
                left.difference_update(done.indices, done.failed)
            rest = [i for i in rest if i in left]

    def run_alone(self, sequence: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The row of one sequence, float32 `[dim]`: the model on it alone, no padding.

        Raises:
            EncodingError: If it does not fit the memory.
        """
        rows = Rows.new(1, self.choice.dim)
        try:
            with self._lock:
                self._alone.forward([sequence], rows).wait()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return rows.row(0)
        free_memory()
        raise EncodingError(_memory_reason(len(sequence)))

    def _stretched(self, tokens: Tokens) -> dict[int, None]:
        """The sequences that would change the positions of others in their batch."""
        limit = self._model.stretches_after
        long = [] if limit is None else np.flatnonzero(tokens.lengths > limit).tolist()
        return dict.fromkeys(long)

    def _alone_batch(self, tokens: Tokens, i: int, into: Rows | None) -> Done:
        rows = into.select([i]) if into else Rows.new(1, self.choice.dim)
        try:
            rows.row(0)[:] = self.run_alone(tokens[i])
        except EncodingError as error:
            return Done([], rows.select([]), {i: str(error)}, self._alone)
        return Done([i], rows, {}, self._alone)

    def _each(self, tokens: Tokens, batches: list[list[int]], into: Rows | None) -> Iterator[Done]:
        """The batches in their order; a device works on the next one while one is in use."""
        before: _UnderWay | None = None
        for indices in batches:
            batch = self._start(tokens, indices, into)
            if before is not None:
                yield before.done()
            before = batch
            if before.here:
                yield before.done()
                before = None
        if before is not None:
            yield before.done()

    def _start(self, tokens: Tokens, indices: list[int], into: Rows | None) -> _UnderWay:
        rows = into.select(indices) if into else Rows.new(len(indices), self.choice.dim)
        batch = _UnderWay(indices, rows, {}, self.choice.engine, [])
        self._forward(tokens, indices, rows, batch)
        return batch

    def _forward(self, tokens: Tokens, indices: list[int], rows: Rows, batch: _UnderWay) -> None:
        """Runs some of a batch, in halves where the memory does not hold it."""
        slots = batch.engine.size([tokens[i] for i in indices])
        splittable = len(indices) > 1
        if not (splittable and self._too_large is not None and slots >= self._too_large):
            try:
                with self._lock:
                    arrival = batch.engine.forward([tokens[i] for i in indices], rows)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                batch.arrivals.append(arrival)
                return
            free_memory()
            if not splittable:
                batch.failed[indices[0]] = _memory_reason(len(tokens[indices[0]]))
                return
            self._too_large = slots
            log.warning("out of memory at %d tokens; going on with smaller batches", slots)
        half = len(indices) // 2
        for part in (range(half), range(half, len(indices))):
            self._forward(tokens, [indices[k] for k in part], rows.select(part), batch)

    def _still_right(self, tokens: Tokens, done: Done) -> bool:
        """Compares a batch with sequences longer than any compared so far with these alone.

        Some of what can make an engine wrong shows only beyond some length: a sliding window that
        is not kept to, positions that are stretched. So the longest of such a batch is compared,
        and the shortest, which must not suffer from it. Returns whether the rows are right; if not,
        another engine is chosen.

        Raises:
            ModelError: If the engine was forced.
        """
        engine, lengths = done.engine, tokens.lengths[done.indices]
        if engine is self._alone:
            return True
        if engine is not self.choice.engine:  # another thread has found it wrong meanwhile
            return False
        if lengths.max(initial=0) <= self.compared:
            return True
        longest = int(lengths.max())
        ends = sorted({int(lengths.argmin()), int(lengths.argmax())})
        sample = [done.indices[k] for k in ends]
        alone = np.stack([self.run_alone(tokens[i]) for i in sample])
        error, cosine = compare(np.stack([done.rows.row(k) for k in ends]), alone)
        if agrees(error, cosine, self._model.dtype) or not np.isfinite(alone).all():
            self.compared = longest
            return True
        reason = (
            f"{engine.name} differs from sequences alone at {longest} tokens (relative error"
            f" {error:.1e}, cosine {cosine:.6f})"
        )
        if self._forced:
            raise ModelError(f"--engine {engine.name}: cannot be used for this model: {reason}")
        probes = tokens.select(sample)
        with self._lock:
            if engine is self.choice.engine:
                choice = choose_engine(self.choice.worse, self._alone, probes, self._model.dtype)
                self.choice = replace(choice, reason=f"{reason}; {choice.reason}")
                log.warning("engine %s from here on: %s", choice.engine.name, self.choice.reason)
        return False


def _engines(model: Model, pooling: Pooling, layer: int, budget: Budget) -> list[Engine]:
    """All engines for a model, best first."""
    windows = partial(WindowEngine, model, pooling, layer, budget)
    return [
        windows(),
        MaskedWindowEngine(model, pooling, layer, budget),
        windows(share=False),
        PaddedEngine(model, pooling, layer, budget),
    ]


def _longest_first(batches: list[list[int]], tokens: Tokens) -> list[list[int]]:
    """The batch with the longest sequence comes first; compared alone, it vouches for the rest."""
    lengths = tokens.lengths
    first = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
    return [batches[first], *batches[:first], *batches[first + 1 :]]


def _memory_reason(length: int) -> str:
    return f"out of memory, though encoded alone ({length} tokens)"
