"""How much goes through a model at a time."""

from dataclasses import dataclass

from ebm_encode.errors import ArgumentError

USUAL_TOKENS = 8192
"""Tokens of a pass, unless told otherwise or measured: enough to fill a CPU, and most GPUs."""

_LEAST_ROWS = 256
_TOKENS_OF_A_ROW = 32
"""Sequences that share much have few tokens of their own."""


@dataclass
class Budget:
    """The most that one forward pass may hold. The engines of an encoder share one.

    Attributes:
        tokens: Most tokens, padding included.
        given_rows: Most sequences, if the user says so.
    """

    tokens: int = USUAL_TOKENS
    given_rows: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or (self.given_rows is not None and self.given_rows < 1):
            raise ArgumentError("`max_batch_tokens` and `batch_size` must be at least 1")

    @classmethod
    def of(cls, tokens: int | None, rows: int | None) -> "Budget":
        """That of a user, who need not say either.

        Raises:
            ArgumentError: If one is below 1.
        """
        return cls(USUAL_TOKENS if tokens is None else tokens, rows)

    @property
    def rows(self) -> int:
        """Most sequences."""
        if self.given_rows is not None:
            return self.given_rows
        return max(_LEAST_ROWS, self.tokens // _TOKENS_OF_A_ROW)
