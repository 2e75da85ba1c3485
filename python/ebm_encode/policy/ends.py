"""Where a generated tactic ends, and what its text is.

Knows nothing of models.
"""

from collections.abc import Sequence
from typing import Any


class Ends:
    """Ends of generated sequences: an end-of-sequence token, or the first of some stop strings.

    Args:
        tokenizer: Turns token ids into text.
        eos: The tokens that end a sequence.
        stop: The stop strings, none of them empty.
    """

    def __init__(self, tokenizer: Any, eos: frozenset[int], stop: Sequence[str]) -> None:
        self.eos = eos
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # A text in UTF-8 has an ASCII byte only where that character is, so a token that completes
        # a stop string has its last character. Decoders may drop spaces of a single token.
        last = {text[-1] for text in self._stop}
        self._last = last if all(c.isascii() and c != " " for c in last) else None
        self._may_end: dict[int, bool] = {}

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether a sequence ends with its last token; asked after each of its tokens."""
        if ids[-1] in self.eos:
            return True
        if not self._completes(ids[-1]):
            return False
        text = self._text(ids)
        return any(stop in text for stop in self._stop)

    def tactic(self, ids: Sequence[int]) -> str:
        """The text up to the first stop string or the end-of-sequence token, trimmed."""
        text = self._text(ids[:-1] if ids[-1] in self.eos else ids)
        places = [text.find(stop) for stop in self._stop]
        first = min((place for place in places if place >= 0), default=len(text))
        return text[:first].strip()

    def _completes(self, token: int) -> bool:
        """Whether a stop string may end in a token."""
        if self._last is None or not self._stop:
            return bool(self._stop)
        known = self._may_end.get(token)
        if known is None:
            text = self._text([token])
            known = self._may_end[token] = any(c in text for c in self._last)
        return known

    def _text(self, ids: Sequence[int]) -> str:
        # Control tokens stay visible: without them this would be the text of other tokens.
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
