"""Token sequences through a model, batch by batch, by the best engine that is right.

Knows nothing of texts: what a sequence means and whether its row is good is the encoder's concern.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from traceback import clear_frames
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ebm_encode.batch import Done, PassError, UnderWay
from ebm_encode.engines import (
    AloneEngine,
    Budget,
    Calibration,
    Compared,
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
from ebm_encode.engines.choice import require_engine, short_probes
from ebm_encode.engines.memory import free_memory, is_out_of_memory
from ebm_encode.engines.rows import Rows
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
        compared: What the engine's rows were compared for with sequences alone.

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
        probes = Tokens.joined(probes, short_probes(probes))
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
        self.compared = Compared(length=self.choice.longest)
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
            try:
                found = calibrate(engine, self.budget, usable, dim=self.choice.dim, memory=memory)
            except Exception as error:  # noqa: BLE001  (a run meets it, too, and knows what to do)
                log.warning("sizes are not calibrated: %s", one_line(error))
                found = Calibration(self.budget.tokens, {})
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
        self.compared = Compared(length=choice.longest)  # what was compared, ran otherwise

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
            engine, failure = self.choice.engine, None
            plan = engine.plan(tokens.select(rest))
            batches = _longest_first([[rest[k] for k in batch] for batch in plan], tokens)
            chosen = [batch for batch in batches if wanted(batch)]
            left = {i for batch in chosen for i in batch}
            try:
                for done in self._each(engine, tokens, chosen, into):
                    if not self._still_right(tokens, done):
                        break  # and plan anew, for the engine that is used from here on
                    yield done
                    left.difference_update(done.indices, done.failed)
            except PassError as error:
                failure = error
            if failure is not None:  # and no more is handled, which would hold the pass's memory
                self._go_on_after(failure, tokens)
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

    def _each(
        self, engine: Engine, tokens: Tokens, batches: list[list[int]], into: Rows | None
    ) -> Iterator[Done]:
        """The batches in their order; a device works on the next one while one is in use."""
        before: UnderWay | None = None
        for indices in batches:
            batch = self._start(engine, tokens, indices, into)
            if before is not None:
                yield before.done()
            before = batch
            if before.here:
                yield before.done()
                before = None
        if before is not None:
            yield before.done()

    def _start(
        self, engine: Engine, tokens: Tokens, indices: list[int], into: Rows | None
    ) -> UnderWay:
        rows = into.select(indices) if into else Rows.new(len(indices), self.choice.dim)
        batch = UnderWay(indices, rows, {}, engine, [])
        self._forward(tokens, indices, rows, batch)
        return batch

    def _forward(self, tokens: Tokens, indices: list[int], rows: Rows, batch: UnderWay) -> None:
        """Runs some of a batch, in halves where the memory does not hold it."""
        engine, sequences = batch.engine, [tokens[i] for i in indices]
        slots = engine.size(sequences)
        splittable = len(indices) > 1
        if not (splittable and self._too_large is not None and slots >= self._too_large):
            try:
                with self._lock:
                    arrival = engine.forward(sequences, rows)
            except Exception as error:
                if not is_out_of_memory(error):
                    if engine is self._alone:
                        raise
                    raise PassError(engine, indices, error) from error
            else:
                batch.arrivals.append(arrival)
                if (at_once := engine.at_once(slots)) > batch.at_once:
                    batch.at_once, batch.together = at_once, indices
                return
            free_memory()
            if not splittable:
                try:
                    rows.row(0)[:] = self.run_alone(sequences[0])
                    batch.alone.add(indices[0])
                except EncodingError as error:
                    batch.failed[indices[0]] = str(error)
                return
            self._too_large = slots
            log.warning("out of memory at %d tokens; going on with smaller batches", slots)
        half = len(indices) // 2
        for part in (range(half), range(half, len(indices))):
            self._forward(tokens, [indices[k] for k in part], rows.select(part), batch)

    def _still_right(self, tokens: Tokens, done: Done) -> bool:
        """Compares some rows of a batch with the sequences alone, if it is larger than any before.

        These are the shortest, which must not suffer from the longest; the one with the last token
        of the largest pass; and the longest that the model alone makes a row of. Where it does not,
        the row is taken back. Returns whether the rows are right; if not, another engine is chosen.

        Raises:
            ModelError: If the engine was forced.
        """
        engine = done.engine
        if engine is self._alone:
            return True
        if engine is not self.choice.engine:  # another thread has found it wrong meanwhile
            return False
        # Places in the batch, the longest sequence's first.
        own = [k for k, i in enumerate(done.indices) if i not in done.alone]
        own.sort(key=lambda k: -tokens.lengths[done.indices[k]])
        longest = int(tokens.lengths[done.indices[own[0]]]) if own else 0
        if self.compared.covers(longest, done.at_once):
            return True
        last = None
        if done.at_once > self.compared.at_once:
            last = done.together[engine.last_at_once([tokens[i] for i in done.together])]
        alone = self._some_alone(tokens, done, own, last)
        if not alone:
            return True
        compared = [done.indices[k] for k in alone]
        length = int(tokens.lengths[compared].max())
        error, cosine = compare(
            np.stack([done.rows.row(k) for k in alone]), np.stack([*alone.values()])
        )
        if agrees(error, cosine, self._model.dtype):
            at_once = done.at_once if last in compared else 0
            with self._lock:
                if engine is self.choice.engine:
                    self.compared = self.compared.with_(length, at_once)
            return True
        reason = (
            f"{engine.name} differs from sequences alone at {length} tokens (relative error"
            f" {error:.1e}, cosine {cosine:.6f})"
        )
        self._go_on_without(engine, reason, tokens.select(compared))
        return False

    def _some_alone(
        self, tokens: Tokens, done: Done, own: list[int], last: int | None
    ) -> dict[int, NDArray[np.float32]]:
        """Rows of single sequences of a batch, by their place in it, that are finite.

        Tried are the shortest, `last`, and the longest ones until there is a finite row. What is
        not finite becomes the batch's row, and says what is wrong with it. What does not fit the
        memory alone is left out.

        Args:
            tokens: All sequences.
            done: The batch.
            own: Places in it, the longest sequence's first.
            last: A sequence that is to be among them.
        """
        sample = [own[-1]] if last is None else [own[-1], done.indices.index(last)]
        alone: dict[int, NDArray[np.float32]] = {}
        for k in dict.fromkeys([*sample, *own]):
            try:
                row = self.run_alone(tokens[done.indices[k]])
            except EncodingError:
                continue
            if np.isfinite(row).all():
                alone[k] = row
            else:
                done.rows.row(k)[:] = row
            if k not in sample and k in alone:
                break
        return alone

    def _go_on_after(self, failure: PassError, tokens: Tokens) -> None:
        """Chooses another engine, unless the model fails on one of the sequences alone as well.

        Raises:
            ModelError: If the engine was forced.
        """
        clear_frames(failure.error.__traceback__)  # which hold the tensors of the pass
        for i in failure.indices:
            try:
                self.run_alone(tokens[i])
            except EncodingError:  # too long for the memory alone; nothing is known of it
                continue
            except Exception:  # noqa: BLE001  (a model's code may raise anything)
                raise failure.error from None
        self._go_on_without(
            failure.engine,
            f"{failure.engine.name} failed where each sequence alone does not"
            f" ({one_line(failure.error)})",
            tokens.select(failure.indices[:1]),
        )

    def _go_on_without(self, engine: Engine, reason: str, sample: Tokens) -> None:
        """Chooses the best of the engines that come after one.

        Args:
            engine: The one that is not used from here on.
            reason: Why.
            sample: Sequences of which some showed it; the next engine is tried on them, too.

        Raises:
            ModelError: If the engine was forced.
        """
        probes = Tokens.joined(self._probes, sample)
        with self._lock:
            if engine is not self.choice.engine:  # another thread has found out, too
                return
            candidates = self.choice.worse
            if isinstance(engine, WindowEngine) and engine.compiled:
                reason = f"compiled {reason}"
                self._may_compile = self._tries_compiling = False
                engine.compile(layers=False)
                free_memory()
                candidates = (engine, *candidates)
            elif self._forced:
                raise ModelError(f"--engine {engine.name}: cannot be used for this model: {reason}")
            before = (*self.choice.refused, reason)
            choice = choose_engine(
                candidates, self._alone, probes, self._model.dtype, before=before
            )
            if self._forced:
                require_engine(choice, engine.name)
            self.choice = choice
            self.compared = Compared(length=choice.longest)
        log.warning("engine %s from here on: %s", self.choice.engine.name, self.choice.reason)


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
