"""Sets of sequences that a runner runs, and how far each is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ebm_encode.engines.engine import Engine, EngineError
from ebm_encode.engines.output import OutputSlots, Pass
from ebm_encode.prompts.tokens import Tokens


@dataclass(eq=False)
class Work:
    """A set of sequences to run, and how far that is.

    Attributes:
        tokens: Sequences of at least one token each.
        slots: Where the embeddings go; if not given, into new memory of each pass.
        wanted: Asked of each batch whether it is to be run.
        left: The sequences that are not done.
        refused: Those without a valid embedding.
        failure: What failed and is not resolved.
    """

    tokens: Tokens
    slots: OutputSlots | None = None
    wanted: Callable[[list[int]], bool] = lambda _: True
    left: set[int] = field(init=False)
    refused: set[int] = field(init=False, default_factory=set)
    failure: EngineError | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.left = {*range(len(self.tokens))}


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class UnderWay(Generic[W]):
    """A pass that an engine has started for a set of sequences."""

    engine: Engine
    work: W
    done: Pass
