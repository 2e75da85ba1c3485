"""A batch of sequences on its way through a model."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from ebm_encode.engines.rows import Arrival, Rows
from ebm_encode.engines.selftest import EngineChoice
from ebm_encode.errors import EncodingError, one_line


@dataclass(frozen=True)
class Done:
    """A batch whose rows have been written where they belong.

    Attributes:
        indices: Which sequences they are of.
        rows: Their rows, not yet checked.
        failed: Those of the batch that cannot be encoded, with the reason.
        choice: What made them.
        alone: Those that only the model alone could make.
        at_once: The most tokens that went through the model at once.
        together: The sequences of the pass in which they did.
        parts: The sequences of each pass that was made for it.
    """

    indices: list[int]
    rows: Rows
    failed: dict[int, EncodingError]
    choice: EngineChoice
    alone: AbstractSet[int] = frozenset()
    at_once: int = 0
    together: Sequence[int] = ()
    parts: Sequence[Sequence[int]] = ()


@dataclass
class UnderWay:
    """A batch that a device has been told to run.

    Attributes:
        indices: Its sequences.
        rows: Where their rows go.
        failed: Those that cannot be encoded, with the reason.
        choice: What makes them.
        arrivals: What to wait for, one of each part of the batch.
        alone: As in `Done`.
        at_once: As in `Done`.
        together: As in `Done`.
        parts: As in `Done`.
    """

    indices: list[int]
    rows: Rows
    failed: dict[int, EncodingError]
    choice: EngineChoice
    arrivals: list[Arrival]
    alone: set[int] = field(default_factory=set)
    at_once: int = 0
    together: Sequence[int] = ()
    parts: list[Sequence[int]] = field(default_factory=list)

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
        rows = self.rows.select(good)
        return Done(
            indices,
            rows,
            self.failed,
            self.choice,
            self.alone,
            self.at_once,
            self.together,
            self.parts,
        )


class PassError(Exception):
    """A pass failed, and not for want of memory."""

    def __init__(self, choice: EngineChoice, indices: list[int], error: Exception) -> None:
        super().__init__(f"{choice.engine.name}: {one_line(error)}")
        self.choice = choice
        self.indices = indices
        self.error = error
