"""States as callers hold them: lists, iterators, and columns of numpy, pandas, polars or pyarrow.

Knows nothing of models or caches. The extension calls `texts_of` for what is no list of `str`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ebm_encode.errors import ArgumentError

_TO_LIST: Final = ("to_pylist", "tolist", "to_list")
"""How pyarrow, numpy and pandas, and polars turn a column into Python objects."""

_PREVIEW: Final = 60
_LISTED: Final = 3


@dataclass(frozen=True)
class Texts:
    """States of a caller, in their order.

    Attributes:
        texts: Every state; an empty text where it is not text.
        wrong: For each state that is not text, by its index: why.
    """

    texts: list[str]
    wrong: dict[int, str]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, states: Any) -> "Texts":
        """Takes any ordered collection of states.

        Args:
            states: A list, tuple, iterator, numpy array, or a column of pandas, polars or pyarrow.

        Raises:
            ArgumentError: If it is not a collection, or has no order, or is one text.
        """
        objects = _listed(states)
        wrong: dict[int, str] = {}
        texts = []
        for i, value in enumerate(objects):
            reason = why_not_text(value)
            if reason is not None:
                wrong[i] = reason
            # Tokenizers and the extension get plain `str`, not a subclass such as `numpy.str_`.
            texts.append("" if reason is not None else str.__str__(value))
        return cls(texts, wrong)

    def require_all(self) -> list[str]:
        """The texts, if all of them are.

        Raises:
            ArgumentError: Listing the first states that are not.
        """
        if self.wrong:
            listed = "; ".join(
                f"state {i} {reason}" for i, reason in [*self.wrong.items()][:_LISTED]
            )
            raise ArgumentError(
                f"{len(self.wrong)} of {len(self)} states are not text: {listed}\n"
                "hint: drop or replace these states; `encode_into` reports them and encodes the"
                " others"
            )
        return self.texts


def texts_of(states: Any) -> list[str]:
    """The states of any ordered collection, all of them text.

    Raises:
        ArgumentError: If it is not such a collection; or listing the states that are not text.
    """
    return Texts.of(states).require_all()


def why_not_text(value: Any) -> str | None:
    """Why a value is not a text that can be encoded; `None` if it is one."""
    if not isinstance(value, str):
        return _why_no_str(value)
    if value.isascii():
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        return f"has half of a surrogate pair ({half} at position {error.start})"
    return None


def _why_no_str(value: Any) -> str:
    if isinstance(value, _NotUtf8):
        return "is not UTF-8"
    if value is None:
        return "is None, expected text"
    if isinstance(value, float) and math.isnan(value):
        return "is NaN, expected text"
    return f"is {_article(type(value).__name__)}, expected text"


def preview(state: Any) -> str:
    """The beginning of a state, for messages."""
    if not isinstance(state, str):
        return repr(state)[:_PREVIEW]
    line = state.partition("\n")[0]
    return repr(line if len(line) <= _PREVIEW else line[:_PREVIEW] + "…")


def _listed(states: Any) -> list[Any]:
    """A collection as a list of Python objects, in its order."""
    if isinstance(states, list):
        return states
    kind = type(states).__name__
    if isinstance(states, str):
        raise ArgumentError(
            "states is one text, expected a list of them\nhint: for one state, `[state]`"
        )
    if isinstance(states, bytes | bytearray | memoryview):
        raise ArgumentError(f"states is {kind}, expected a list of texts\nhint: decode it first")
    if isinstance(states, Mapping | set | frozenset) or hasattr(states, "columns"):
        raise ArgumentError(
            f"states is a {kind}, expected an ordered list of texts\n"
            "hint: pass its keys as a list, or one column of it"
        )
    for name in _TO_LIST:
        if callable(method := getattr(states, name, None)):
            return _column(states, method, kind)
    if not isinstance(states, Iterable):
        raise ArgumentError(f"states is {_article(kind)}, expected a list of texts")
    return list(states)


def _column(states: Any, to_list: Any, kind: str) -> list[Any]:
    try:
        values = to_list()
    except UnicodeDecodeError:  # pyarrow takes the bytes of a file as they are
        return [_decoded(scalar) for scalar in states]
    if not isinstance(values, list):  # an array without a dimension
        raise ArgumentError(f"states is one {kind} value, expected a list of texts")
    return values


class _NotUtf8:
    """Stands for a text of pyarrow that cannot be decoded."""


def _decoded(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _NotUtf8()


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
