"""What an engine has been compared for with the unbatched reference."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """How far an engine is known to be right.

    Some of what can make it wrong shows only beyond some length of a sequence (a sliding window
    that is not kept to, positions that are stretched) or beyond some size of a pass (a model that
    counts tokens where it should look at their positions).

    Attributes:
        length: Tokens of the longest sequence that was compared.
        at_once: Most tokens that went through the model at once, the last of which was compared.
    """

    length: int = 0
    at_once: int = 0

    def covers(self, length: int, at_once: int) -> bool:
        """Whether there is nothing new in a batch of such sizes."""
        return length <= self.length and at_once <= self.at_once

    def with_(self, length: int, at_once: int) -> "Compared":
        """As far as this, and as far as these."""
        return Compared(max(self.length, length), max(self.at_once, at_once))
