"""What a bulk run did."""

from dataclasses import dataclass, field
from typing import Any

from ebm_encode.bulk.verification import Verification


@dataclass
class Outcome:
    """What a run did, in states.

    Attributes:
        rows: Held by the cache in the end.
        encoded: Newly encoded.
        already_there: Already cached, in the output or by an interrupted run.
        from_caches: Reused from `--cache`.
        tokens: Tokens of the encoded ones.
        truncated: With a prompt that was cut.
        skipped: With a prompt that is too long.
        same_by_cutting: Whose prompts became another state's when they were cut.
        retried_alone: Re-encoded at batch size 1.
        written: Whether the output was written.
        quarantined: Those without a valid embedding: `state`, `kind`, `reason`, `tokens`.
        verification: How near a sample is to the reference.
    """

    rows: int = 0
    encoded: int = 0
    already_there: int = 0
    from_caches: int = 0
    tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    same_by_cutting: int = 0
    retried_alone: int = 0
    written: bool = False
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    verification: Verification | None = None

    def counts(self) -> dict[str, int]:
        """The numbers for the cache's provenance."""
        return {
            "encoded": self.encoded,
            "already_there": self.already_there,
            "from_caches": self.from_caches,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "skipped": self.skipped,
            "same_by_cutting": self.same_by_cutting,
            "retried_alone": self.retried_alone,
            "quarantined": len(self.quarantined),
        }
