"""Which engine a model runs with: chosen by a self-test, replaced once it is found not exact."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ebm_encode.engines.budget import Budget
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.flex_engine import FlexEngine
from ebm_encode.engines.memory import free_memory
from ebm_encode.engines.noise import NoiseFloor
from ebm_encode.engines.padded import PaddedEngine, UnbatchedEngine
from ebm_encode.engines.prefix import PrefixEngine
from ebm_encode.engines.selftest import EngineChoice, SelfTest, require_engine
from ebm_encode.engines.server import ServerEngine
from ebm_encode.engines.unbatched import Unbatched
from ebm_encode.errors import EbmEncodeError, ModelError, UnsafeServerError, one_line
from ebm_encode.loading.model import Model
from ebm_encode.options import Compile, EngineName, Pooling
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

EngineFactory = Callable[[Model, Pooling, int, Budget], Sequence[Engine]]
"""Makes the engines of a model, best first, from the model, pooling, layer and budget."""


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
            calibration finds that it pays.
        engines: Makes the engines to choose from, best first; those of this package if not given.
            They must pass the self-test too. A server's is the only one.

    Attributes:
        server: The engine, if it is a server's; then there is none to fall back on.
        choice: The engine, and why. It is replaced as a whole, never changed.
        unbatched: The reference: sequences at batch size 1.
        may_compile: Whether layers may be compiled.
        tries_compiling: Whether that may be tried, only for speed.
        lock: To be held while any of the engines runs, as engines switch the model's attention, and
            where a method says so; the others take it themselves.

    Raises:
        ModelError: If the model does not run, or the engine asked for fails its self-test.
        UnsafeServerError: If the engine is a server's, and fails.
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
        self.lock = threading.Lock()
        with _naming(model):
            reference = UnbatchedEngine(model, pooling, layer)
            known = (engines or default_engines)(model, pooling, layer, budget)
            self.server = next((own for own in known if isinstance(own, ServerEngine)), None)
            candidates = [own for own in known if _wanted(own, engine)]
            probes = _together(model, probes)
            if self.server is not None:
                probes = _taken(self.server, probes)
            self._test = SelfTest.prepare(model, reference, probes)
            self.choice: EngineChoice = self._test.choose(candidates)
        longest = probes[int(probes.lengths.argmax())]
        self.unbatched = Unbatched(model, reference, longest, self.choice.dim, self.lock)
        self.may_compile = compile_layers != "off"
        self.tries_compiling = compile_layers == "auto" and model.device.type == "cuda"
        self._model = model
        self._forced = engine != "auto"
        if self._forced:
            require_engine(self.choice, engine)
        self._require_server()
        if self.server is not None:
            self.server.know(*self._test.known())
        if compile_layers == "on":
            self.use(self._compiled_or_fail())

    @property
    def noise(self) -> NoiseFloor:
        """The noise floor of the model, and so what embeddings may differ by."""
        return self._test.noise

    @property
    def compiled(self) -> bool:
        """Whether the model's layers run compiled."""
        return bool(getattr(self.choice.engine, "compiled", False))

    def stop(self) -> None:
        """Ends waits for a server's answers, from any thread, before the process ends."""
        if self.server is not None:
            self.server.stop()

    def mark_verified(self, engine: Engine, length: int, tokens_per_forward: int) -> None:
        """Notes up to which sizes, as of `Compared`, an engine's embeddings were found exact."""
        with self.lock:
            if engine is self.choice.engine:
                compared = self.choice.compared.extended_to(length, tokens_per_forward)
                self.choice = replace(self.choice, compared=compared)

    def fall_back(self, wrong: Engine, reason: str, sample: Tokens) -> None:
        """Chooses the best of the engines that come after one; another thread may have done so.

        After an engine with compiled layers comes the same one with the layers as they are.

        Args:
            wrong: What is not used any more.
            reason: Why.
            sample: Sequences of which some showed it; the next engine is tried on them, too.

        Raises:
            ModelError: If the engine was forced.
        """
        with self.lock:
            before = self.choice
            if wrong is not before.engine:
                return
            if self.compiled:
                reason = f"compiled {reason}"
                self.may_compile = self.tries_compiling = False
            elif self.server is not None:
                raise _unsafe(self.server, reason)
            elif self._forced:
                raise ModelError(f"`engine` {wrong.name}: cannot be used for this model: {reason}")
            with _naming(self._model):
                choice = self._test.with_samples(sample).choose(
                    before.alternatives, before=(*before.refused, reason)
                )
            # Before it may be refused: what was found inexact is not used again.
            self.choice = choice
            log.warning("engine %s from now on: %s", choice.engine.name, choice.reason)
            if self._forced:
                require_engine(choice, wrong.name)

    def candidates(self) -> list[EngineChoice]:
        """Each engine that is exact for the model, as a choice to `use`; the one in use first.

        The lock must be held.
        """
        others = () if self.server is not None or self.compiled else self.choice.alternatives
        tested = [self._tested(engine) for engine in others]
        return [self.choice, *(choice for choice in tested if choice is not None)]

    def candidate(self, name: str) -> EngineChoice | None:
        """The engine of a name as a choice to `use`, if it is exact. The lock must be held."""
        if self.choice.engine.name == name:
            return self.choice
        named = (own for own in self.choice.alternatives if own.name == name)
        return next((self._tested(engine) for engine in named), None)

    def _tested(self, engine: Engine) -> EngineChoice | None:
        """An alternative as a choice, if it is exact."""
        current = self.choice
        tested = self._test.choose([engine])
        if tested.engine is not engine:
            log.info("%s", tested.reason)
            return None
        others = tuple(own for own in (current.engine, *current.alternatives) if own is not engine)
        return replace(tested, alternatives=others, refused=current.refused)

    def compiled_candidate(self) -> EngineChoice | None:
        """The engine in use with its layers compiled, if that passes the self-test.

        The lock must be held.
        """
        try:
            return self._compiled_or_fail()
        except ModelError as error:
            log.info("layers are not compiled: %s", error)
            return None

    def use(self, candidate: EngineChoice) -> None:
        """Uses a candidate. The lock must be held once threads share it."""
        self.choice = candidate

    def _require_server(self) -> None:
        if self.server is not None and self.choice.engine is not self.server and self.choice.finite:
            raise _unsafe(self.server, "; ".join(self.choice.refused))

    def _compiled_or_fail(self) -> EngineChoice:
        before = self.choice
        plain = before.engine
        if not isinstance(plain, PrefixEngine):
            raise ModelError(
                f"`compile_layers` on: engine {plain.name} runs layers only as they are"
            )
        try:
            engine = plain.with_compiled_layers()
            found = self._test.choose([engine])
            exact, reason = found.engine is engine, found.reason
        except Exception as error:  # noqa: BLE001  (a compiler may raise anything)
            exact, reason = False, one_line(error)
        if not exact:
            free_memory()
            raise ModelError(f"`compile_layers` on: cannot be used for this model: {reason}")
        return replace(
            before,
            engine=engine,
            alternatives=(plain, *before.alternatives),
            compared=found.compared,  # of plain layers nothing follows for compiled ones
        )


@contextmanager
def _naming(model: Model) -> Iterator[None]:
    """Makes whatever a model's code raises an error of this package."""
    try:
        yield
    except EbmEncodeError:
        raise
    except Exception as error:
        raise ModelError(f"{model.name}: does not run: {one_line(error)}") from error


def _unsafe(server: ServerEngine, reason: str) -> UnsafeServerError:
    where = server.describe().get("server", server.name)
    return UnsafeServerError(
        f"{where}: its embeddings are not those of the model in this process: {reason}\nhint: it"
        " must serve the same weights, in the same dtype, with the same pooling; `ebm-encode doctor"
        " --server URL --model-path MODEL` tells more"
    )


def _taken(server: ServerEngine, probes: Tokens) -> Tokens:
    """The sequences that a server takes.

    Raises:
        UnsafeServerError: If there are none.
    """
    too_long = {*server.too_long(probes)}
    taken = [i for i in range(len(probes)) if i not in too_long]
    if not taken:
        raise _unsafe(server, f"it takes no more than {server.longest} tokens")
    return probes.select(taken)


def _wanted(engine: Engine, name: EngineName) -> bool:
    """Whether an engine is one to choose from, if one is asked for by this name."""
    if name == "auto":
        return not getattr(engine, "only_by_name", False)
    return engine.name == name


def _together(model: Model, probes: Tokens) -> Tokens:
    """Those sequences that may share a batch; all of them if none may."""
    stretched = set(model.stretching(probes.lengths))
    together = [i for i in range(len(probes)) if i not in stretched]
    return probes.select(together) if together else probes


def default_engines(model: Model, pooling: Pooling, layer: int, budget: Budget) -> Sequence[Engine]:
    """This package's engines for a model, best first as far as is known without measuring."""
    by_runs = PrefixEngine(model, pooling, layer, budget)
    flex = FlexEngine(model, pooling, layer, budget)
    others: list[Engine] = [
        PrefixEngine(model, pooling, layer, budget, share=False),
        PaddedEngine(model, pooling, layer, budget),
    ]
    # First what need not be compiled when a model is loaded.
    return [by_runs, flex, *others]
