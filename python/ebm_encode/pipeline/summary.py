"""What became of an iteration's steps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

StepState = Literal["done", "kept", "failed", "interrupted", "not reached"]
RunState = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class StepSummary:
    """One step.

    Attributes:
        name: Its name.
        state: `kept`: it was done before and nothing changed.
        seconds: How long it took, also if that was in an earlier run.
        outputs: What it writes.
        figures: Key figures of what it reported.
        why: Why it ran, or failed.
    """

    name: str
    state: StepState
    seconds: float | None = None
    outputs: Sequence[str] = ()
    figures: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Summary:
    """A whole run.

    Attributes:
        state: How it ended.
        steps: The steps, in order.
        server: What was done about the inference server; empty if there is none.
        error: What went wrong; empty if nothing did.
        seconds: How long it took.
    """

    state: RunState
    steps: list[StepSummary]
    server: str
    error: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
