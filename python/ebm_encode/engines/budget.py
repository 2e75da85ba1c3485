"""How much one forward pass may hold."""

from dataclasses import dataclass

from ebm_encode.errors import ArgumentError

USUAL_TOKENS = 8192
"""Tokens of a pass, unless told otherwise or measured: enough to fill a CPU, and most GPUs."""

_LEAST_SEQUENCES = 256
_TOKENS_PER_SEQUENCE = 32
"""Sequences that share much add few tokens each."""


@dataclass
class Budget:
    """The most that one forward pass may hold. The engines of an encoder share one.

    Attributes:
        tokens: Most tokens, padding included.
        given_sequences: Most sequences, if the user says so.
        path_bytes: Most bytes that an engine may gather in a layer, for the keys and values of all
            paths of a packed batch; `None`: any number.
    """

    tokens: int = USUAL_TOKENS
    given_sequences: int | None = None
    path_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or (self.given_sequences is not None and self.given_sequences < 1):
            raise ArgumentError("`max_batch_tokens` and `batch_size` must be at least 1")

    @classmethod
    def of(
        cls, tokens: int | None, sequences: int | None, *, path_bytes: int | None = None
    ) -> "Budget":
        """A user's budget; `None` stands for the default.

        Raises:
            ArgumentError: If one is below 1.
        """
        return cls(USUAL_TOKENS if tokens is None else tokens, sequences, path_bytes)

    @property
    def sequences(self) -> int:
        """Most sequences."""
        if self.given_sequences is not None:
            return self.given_sequences
        return max(_LEAST_SEQUENCES, self.tokens // _TOKENS_PER_SEQUENCE)
