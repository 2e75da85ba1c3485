"""The self-test: which engine to use for a model: the first that is exact."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebm_encode.engines.compared import NOTHING, Compared
from ebm_encode.engines.engine import Engine
from ebm_encode.engines.noise import NoiseFloor, rounded, token_errors, unstable_tokens
from ebm_encode.engines.output import OutputSlots
from ebm_encode.engines.padded import UnbatchedEngine
from ebm_encode.engines.reference import (
    Deviation,
    Reference,
    compare,
    deviation,
    embedding_deviation,
    embeddings_agree,
)
from ebm_encode.engines.server import SERVER_ERRORS, ServerEngine
from ebm_encode.errors import ModelError, one_line
from ebm_encode.loading.model import Model
from ebm_encode.prompts.tokens import Tokens

log = logging.getLogger(__name__)

# They begin alike, one is the beginning of another, and two are the same: all that a trie can hold.
SELF_TEST_PROMPTS = (
    "⊢ True",
    "n : ℕ\n⊢ n + 0 = n",
    "p q : Prop\nhp : p\nhq : q\n⊢ p ∧ q",
    "p q : Prop\nhp : p\nhq : q\n⊢ p",
    "p q : Prop\nhp : p\nhq : q\n⊢ q ∧ p",
    "p q : Prop\nhp : p\nhq : q\n⊢ q ∧ p",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\nhx : x ∈ I\n⊢ x ∈ J",
    "α : Type u_1\ninst✝ : CommRing α\nI J : Ideal α\nh : I ≤ J\nx : α\n⊢ x ∈ I → x ∈ J",
    """case succ
x y : ℝ
n : ℕ
ih : x ^ n * y ^ n = (x * y) ^ n
⊢ x ^ (n + 1) * y ^ (n + 1) = (x * y) ^ (n + 1)

case zero
x y : ℝ
⊢ x ^ 0 * y ^ 0 = (x * y) ^ 0""",
)


@dataclass(frozen=True)
class EngineChoice:
    """The engine to use, and why.

    Attributes:
        engine: The engine.
        dim: Length of an embedding.
        reason: In words; also why better engines were not taken.
        deviation: How far it is from the unbatched reference; `None` for the reference itself.
        noise: The noise floor of the model.
        compared: How far it has been compared with the reference.
        alternatives: The engines to fall back on, best first, should this one prove not exact.
        refused: Why better ones were not taken, of each.
        finite: Whether the model gives a finite embedding of any self-test prompt.
    """

    engine: Engine
    dim: int
    reason: str
    noise: NoiseFloor
    deviation: Deviation | None = None
    compared: Compared = NOTHING
    alternatives: tuple[Engine, ...] = ()
    refused: tuple[str, ...] = ()
    finite: bool = True

    def to_json(self) -> dict[str, Any]:
        """The engine's name, the reason, and how far it is from the reference."""
        found = self.deviation
        return {
            "name": self.engine.name,
            "reason": self.reason,
            "self_test_relative_error": found.error if found else None,
            "self_test_cosine": found.cosine if found else None,
            "self_test_token_error": found.token_error if found else None,
            "noise_floor": self.noise.to_json(),
        }


@dataclass(frozen=True)
class SelfTest:
    """Self-test prompts with their reference and the noise floor; candidates are compared with it.

    Attributes:
        probes: The sequences that have a finite reference.
        reference: Their unbatched hidden states and embeddings.
        noise: The noise floor of the model.
        dim: Length of an embedding.
        model: The model.
        unbatched: The engine that is the reference.
    """

    probes: Tokens
    reference: Reference
    noise: NoiseFloor
    dim: int
    model: Model
    unbatched: UnbatchedEngine
    _unstable: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def prepare(cls, model: Model, unbatched: UnbatchedEngine, probes: Tokens) -> "SelfTest":
        """Runs the reference, plainly and with roundings.

        Args:
            model: The model.
            unbatched: The engine that is the reference.
            probes: Sequences that begin alike and differ in length, so that a wrong mask shows.
        """
        dim = unbatched.width(probes[int(probes.lengths.argmax())])
        reference = reference_of(unbatched, probes, dim)
        finite = np.flatnonzero(np.isfinite(reference.embeddings).all(axis=1)).tolist()
        if 0 < len(finite) < len(probes):
            log.warning(
                "self-test: %d of %d prompts have no finite embedding even unbatched; skipped",
                len(probes) - len(finite),
                len(probes),
            )
        probes, reference = probes.select(finite), reference.select(finite)
        with rounded(model) as possible:
            moved = reference_of(unbatched, probes, dim) if possible else reference
        errors = token_errors(moved.states, reference.states) if possible else np.zeros(0)
        noise = NoiseFloor.of(model.dtype, errors)
        return cls(probes, reference, noise, dim, model, unbatched)

    def with_samples(self, samples: Tokens) -> "SelfTest":
        """The same with more sequences, as far as these have a finite reference."""
        more = reference_of(self.unbatched, samples, self.dim)
        finite = np.flatnonzero(np.isfinite(more.embeddings).all(axis=1)).tolist()
        samples, more = samples.select(finite), more.select(finite)
        reference = Reference(
            [*self.reference.states, *more.states],
            np.concatenate([self.reference.embeddings, more.embeddings]),
        )
        probes = Tokens.joined(self.probes, samples)
        return SelfTest(probes, reference, self.noise, self.dim, self.model, self.unbatched)

    def choose(self, candidates: Sequence[Engine], *, before: Sequence[str] = ()) -> EngineChoice:
        """The first of the candidates that is exact; the reference itself where none is.

        Args:
            candidates: Engines, best first.
            before: Why engines that are no candidates any more were not taken.
        """
        if not len(self.probes):
            reason = "the model's hidden states are not finite even unbatched; all are refused"
            log.warning("self-test: %s", reason)
            return EngineChoice(self.unbatched, self.dim, reason, self.noise, finite=False)
        refused = [*before]
        for i, engine in enumerate(candidates):
            try:
                found = self._deviation(engine)
            except SERVER_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  (a model's code may raise anything)
                refused.append(f"{engine.name} does not work with this model ({one_line(error)})")
                continue
            if not found.exact:
                refused.append(
                    f"{engine.name} differs from the unbatched reference ({found}; allowed"
                    f" {self.noise.bound:.1e})"
                )
                continue
            equal = f"matches the unbatched reference ({found}; allowed {self.noise.bound:.1e})"
            return EngineChoice(
                engine,
                self.dim,
                "; ".join([*refused, equal]),
                self.noise,
                found,
                Compared(length=int(self.probes.lengths.max())),
                tuple(candidates[i + 1 :]),
                tuple(refused),
            )
        reason = "; ".join([*refused, "batch size 1, which is exact but slow"])
        return EngineChoice(self.unbatched, self.dim, reason, self.noise, refused=tuple(refused))

    def known(self) -> tuple[Tokens, Callable[[int, NDArray[np.float32]], bool]]:
        """The self-test prompts, and whether an embedding is that of one of them, by its index."""

        def agree(i: int, embedding: NDArray[np.float32]) -> bool:
            right = self.reference.embeddings[i : i + 1]
            return embeddings_agree(*compare(embedding[None], right), self.noise)

        return self.probes, agree

    def _deviation(self, engine: Engine) -> Deviation:
        """How far an engine is from the reference of the self-test prompts."""
        slots = OutputSlots.new(len(self.probes), self.dim)
        states = dict[int, NDArray[np.float32]]()
        for batch in engine.plan(self.probes):
            own = engine.trial([self.probes[i] for i in batch], slots.select(batch))
            states.update(zip(batch, own, strict=True))
        if isinstance(engine, ServerEngine) and not engine.gives_states:
            return embedding_deviation(slots.array, self.reference, noise=self.noise)
        ordered = [states[i] for i in range(len(self.probes))]
        return deviation(
            slots.array,
            ordered,
            self.reference,
            pooling=self.unbatched.pooling,
            noise=self.noise,
            unstable=self._unstable_tokens,
        )

    def _unstable_tokens(self, i: int) -> NDArray[np.bool_]:
        """Which tokens of a prompt rounding moves beyond the bound; the same for every engine."""
        if i not in self._unstable:
            probe, scratch = self.probes[i], OutputSlots.new(1, self.dim)

            def states(seed: int) -> NDArray[np.float32]:
                with rounded(self.model, seed):
                    return self.unbatched.states([probe], scratch, [0])[0]

            self._unstable[i] = unstable_tokens(states, self.reference.states[i], self.noise)
        return self._unstable[i]


def reference_of(unbatched: UnbatchedEngine, sequences: Tokens, dim: int) -> Reference:
    """Hidden states and embeddings of some sequences, each at batch size 1."""
    slots = OutputSlots.new(len(sequences), dim)
    states = [
        unbatched.states([sequences[i]], slots.select([i]), [0])[0] for i in range(len(sequences))
    ]
    return Reference(states, slots.array)


def require_engine(choice: EngineChoice, name: str) -> None:
    """Refuses a choice other than the engine asked for.

    Raises:
        ModelError: If the engine of that name failed.
    """
    if choice.engine.name != name:
        raise ModelError(f"`engine` {name}: cannot be used for this model: {choice.reason}")
