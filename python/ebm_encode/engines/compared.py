"""Sizes up to which an engine has been compared with the unbatched reference."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """How far an engine is known to be exact.

    Some faults show only beyond some length of a sequence (an ignored sliding window, positions
    that are stretched) or beyond some size of a pass (a model that counts tokens where it should
    look at their positions).

    Attributes:
        length: Tokens of the longest sequence that was compared.
        tokens_per_forward: Most tokens in one row of the model's input, the last of which was
            compared.
    """

    length: int = 0
    tokens_per_forward: int = 0

    def covers(self, length: int, tokens_per_forward: int) -> bool:
        """Whether nothing in a batch of such sizes is larger."""
        return length <= self.length and tokens_per_forward <= self.tokens_per_forward

    def extended_to(self, length: int, tokens_per_forward: int) -> "Compared":
        """As far as this, and as far as these."""
        return Compared(max(self.length, length), max(self.tokens_per_forward, tokens_per_forward))


NOTHING = Compared()
