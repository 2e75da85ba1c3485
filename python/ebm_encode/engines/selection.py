"""Which engine a model runs with: chosen by a self-test, and given up once it is found wrong."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.compared import Compared
from ebm_encode.engines.engine import Engine, Pooling
from ebm_encode.engines.memory import free_memory
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.padded import AloneEngine, PaddedEngine
from ebm_encode.engines.prefix import MaskedWindowEngine, WindowEngine
from ebm_encode.engines.rows import Rows
from ebm_encode.engines.selftest import EngineChoice, SelfTest, require_engine
from ebm_encode.errors import EbmEncodeError, ModelError, one_line
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

Compile = Literal["auto", "on", "off"]
EngineFactory = Callable[[Model, Pooling, int, Budget], Sequence[Engine]]
"""Makes the engines of a model, best first, from the model, pooling, layer and budget."""
EngineName = Literal["auto", "shared-prefix", "shared-prefix-mask", "packed", "padded", "alone"]


class Selection:
    """The engine in use.

    Args:
        model: The model.
        pooling: `mean` over a sequence's tokens, or its `last`.
        layer: Index of the hidden state as in Hugging Face `hidden_states`.
        budget: The most that one forward pass may hold.
        probes: Sequences for the self-test.
        engine: `auto`, or the one engine to use.
        compile_layers: Whether torch compiles the model's layers; `auto`: if `tries_compiling`, and
            whoever asks `compile` to finds that it pays.
        engines: Makes the engines to choose from, best first; those of this package if not given.
            They are not trusted either.

    Attributes:
        choice: The engine, and why; another object whenever rows are made otherwise from there on.
        alone: The engine that runs each sequence at batch size 1, which is the reference.
        compared: What the engine was compared for with the reference.
        may_compile: Whether layers may be compiled.
        tries_compiling: Whether that may be tried for speed alone.
        lock: To be held while any of the engines runs, and where a method says so; the others take
            it themselves. Engines switch the model's attention.

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
        engines: EngineFactory | None = None,
    ) -> None:
        with _naming(model):
            self.alone = AloneEngine(model, pooling, layer)
            known = (engines or default_engines)(model, pooling, layer, budget)
        self.may_compile = compile_layers != "off"
        self.tries_compiling = compile_layers == "auto" and model.device.type == "cuda"
        self.lock = threading.Lock()
        self._model = model
        self._forced = engine != "auto"
        candidates = [own for own in known if engine in ("auto", own.name)]
        stretched = set(model.stretching(probes.lengths))
        if len(stretched) < len(probes):
            probes = probes.select([i for i in range(len(probes)) if i not in stretched])
        self._longest = probes[int(probes.lengths.argmax())]
        with _naming(model):
            self._test = SelfTest.prepare(model, self.alone, probes)
            self.choice: EngineChoice = self._test.choose(candidates)
        if self._forced:
            require_engine(self.choice, engine)
        self.compared = Compared(length=self.choice.longest)
        if compile_layers == "on":
            self._compile_or_fail()

    @property
    def engine(self) -> Engine:
        """The engine."""
        return self.choice.engine

    @property
    def noise(self) -> NoiseFloor:
        """The noise floor of the model, and so what embeddings may differ by."""
        return self._test.noise

    @property
    def compiled(self) -> bool:
        """Whether the model's layers run compiled."""
        engine = self.engine
        return isinstance(engine, WindowEngine) and engine.compiled

    def compile(self) -> bool:
        """Compiles the layers, if they then pass the self-test; returns whether they do.

        The lock must be held.
        """
        try:
            self._compile_or_fail()
        except ModelError as error:
            log.info("layers are not compiled: %s", error)
        return self.compiled

    def uncompile(self) -> None:
        """Lets the layers run as they are from here on. The lock must be held."""
        if isinstance(self.engine, WindowEngine):
            self.engine.compile(layers=False)
        self.choice = replace(self.choice)
        self.compared = Compared(length=self.choice.longest)
        free_memory()

    def works(self) -> bool:
        """Whether the model alone still does what it did when it was loaded."""
        try:
            with self.lock:
                self.alone.forward([self._longest], Rows.new(1, self.choice.dim)).wait()
        except Exception as error:  # noqa: BLE001  (a model's code may raise anything)
            log.warning("the model fails on what it ran before: %s", one_line(error))
            return False
        return True

    def agreed(self, choice: EngineChoice, length: int, at_once: int) -> None:
        """Notes that a choice's rows, of such sizes as `Compared` has, were found right."""
        with self.lock:
            if choice is self.choice:
                self.compared = self.compared.with_(length, at_once)

    def go_on_without(self, wrong: EngineChoice, reason: str, sample: Tokens) -> None:
        """Chooses the best of the engines that come after one.

        Where its layers were compiled, that is the same engine with the layers as they are.

        Args:
            wrong: What is not used from here on.
            reason: Why.
            sample: Sequences of which some showed it; the next engine is tried on them, too.

        Raises:
            ModelError: If the engine was forced.
        """
        engine = wrong.engine
        with self.lock:
            if wrong is not self.choice:  # another thread has found out, too
                return
            candidates = self.choice.worse
            if self.compiled:
                reason = f"compiled {reason}"
                self.may_compile = self.tries_compiling = False
                self.uncompile()
                candidates = (engine, *candidates)
            elif self._forced:
                raise ModelError(f"`engine` {engine.name}: cannot be used for this model: {reason}")
            before = (*self.choice.refused, reason)
            choice = self._tried(candidates, sample, before)
            if self._forced:
                require_engine(choice, engine.name)
            self.choice = choice
            self.compared = Compared(length=choice.longest)
        log.warning("engine %s from here on: %s", choice.engine.name, choice.reason)

    def _tried(
        self,
        candidates: Sequence[Engine],
        sample: Tokens | None = None,
        before: Sequence[str] = (),
    ) -> EngineChoice:
        """The first exact one of some engines, by the self-test and a sample, if there is one."""
        with _naming(self._model):
            test = self._test if sample is None else self._test.with_samples(sample)
            return test.choose(candidates, before=before)

    def _compile_or_fail(self) -> None:
        engine = self.engine
        if not isinstance(engine, WindowEngine):
            raise ModelError(
                f"`compile_layers` on: engine {engine.name} runs layers only as they are"
            )
        proven = False
        try:
            engine.compile(layers=True)
            choice = self._tried([engine])
            proven, reason = choice.engine is engine, choice.reason
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            reason = one_line(error)
        finally:  # also where the user interrupts it
            if not proven:
                self.uncompile()
        if not proven:
            raise ModelError(f"`compile_layers` on: cannot be used for this model: {reason}")
        self.choice = replace(self.choice)
        self.compared = Compared(length=choice.longest)  # what was compared, ran otherwise


@contextmanager
def _naming(model: Model) -> Iterator[None]:
    """Makes whatever a model's code raises an error of this package."""
    try:
        yield
    except EbmEncodeError:
        raise
    except Exception as error:
        raise ModelError(f"{model.name}: does not run: {one_line(error)}") from error


def default_engines(model: Model, pooling: Pooling, layer: int, budget: Budget) -> Sequence[Engine]:
    """This package's engines for a model, best first."""
    windows = partial(WindowEngine, model, pooling, layer, budget)
    return [
        windows(),
        MaskedWindowEngine(model, pooling, layer, budget),
        windows(share=False),
        PaddedEngine(model, pooling, layer, budget),
    ]
