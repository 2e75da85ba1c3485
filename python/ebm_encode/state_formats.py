"""Printed forms of proof states, and conversions of many states between them.

The forms and their rules are `ebm-search`, `state_format`; this module only counts and reports.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ebm_encode import _core
from ebm_encode._core import Identity
from ebm_encode.errors import StateFormatError

AS_GIVEN: Final = "as-given"
FIELD: Final = "state_format"
"""The field of an identity that holds the format; absent where texts are taken as given."""

_SHOWN = 60


@dataclass(frozen=True)
class Conversion:
    """States that were converted from one printed form to another.

    Attributes:
        source: The format that they were in, as `lean-1`.
        target: The format that they are in now.
        texts: Each distinct converted state, in the order of first appearance.
        states: States that were given.
        changed: Those whose text is another now.
        equal: Those whose text became that of another one.
        broken: Those with lines that the printer broke; another one may break them elsewhere, so a
            state printed by it may have another text.
        refused: Those that cannot be converted: `state` and `reason`.
    """

    source: str
    target: str
    texts: list[str]
    states: int
    changed: int
    equal: int
    broken: int
    refused: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        """The counts and formats; JSON values only."""
        return {
            "source": self.source,
            "target": self.target,
            "states": self.states,
            "changed": self.changed,
            "equal": self.equal,
            "broken": self.broken,
            "refused": len(self.refused),
        }

    def __str__(self) -> str:
        counts = (
            (self.changed, "changed"),
            (self.equal, "equal to another after it"),
            (self.broken, "with broken lines, which another printer may break elsewhere"),
            (len(self.refused), "refused"),
        )
        rest = ", ".join(f"{count:,} {what}" for count, what in counts if count)
        plural = "" if self.states == 1 else "s"
        return f"{self.states:,} state{plural} converted to {self.target}" + (
            f": {rest}" if rest else ""
        )


def format_name(name: str) -> str:
    """The name of a format with its version: `lean` is `lean-1`.

    Raises:
        ArgumentError: If there is no such format.
    """
    return _core.state_format_name(name)


def format_of(identity: Identity | None) -> str:
    """The format that the states of an encoder or a cache are in, with its version."""
    fields = {} if identity is None else json.loads(identity.to_json())
    return str(fields.get(FIELD, AS_GIVEN))


def without_format(identity: Identity) -> Identity:
    """The identity of the same encoder over states as they are given."""
    fields = json.loads(identity.to_json())
    fields.pop(FIELD, None)
    return Identity.from_json(json.dumps(fields))


def convert(states: Sequence[str], target: str, source: str | None = None) -> Conversion:
    """Converts states, and counts what became of them.

    Args:
        states: The states, distinct.
        target: The format to convert to.
        source: The format that they are in; by default what the texts show, where it makes no
            difference what they do not show.

    Raises:
        ArgumentError: If there is no such format.
        StateFormatError: If the format that they are in must be said.
    """
    return convert_each(states, target, source)[1]


def convert_each(
    states: Sequence[str], target: str, source: str | None = None
) -> tuple[dict[str, str], Conversion]:
    """Converts states as `convert` does; also gives the converted text of each that has one."""
    source = _core.source_format_of(states, source, target)
    texts, failures = _core.convert_states(states, source, target)
    found = {state: text for state, text in zip(states, texts, strict=True) if text is not None}
    distinct = [*dict.fromkeys(found.values())]
    return found, Conversion(
        source=source,
        target=format_name(target),
        texts=distinct,
        states=len(states),
        changed=sum(text != state for state, text in found.items()),
        equal=len(found) - len(distinct),
        broken=sum("\n " in text for text in distinct),
        refused=[{"state": states[index], "reason": reason} for index, reason in failures],
    )


def convert_all(states: Sequence[str], target: str, source: str | None = None) -> list[str]:
    """The converted text of each state, in their order.

    Args:
        states: The states.
        target: The format to convert to.
        source: The format that they are in; as for `convert`.

    Raises:
        ArgumentError: If there is no such format.
        StateFormatError: If a state cannot be converted, or the format that they are in must be
            said.
    """
    source = _core.source_format_of(states, source, target)
    texts, failures = _core.convert_states(states, source, target)
    if failures:
        raise refusal([(states[i], reason) for i, reason in failures], len(states), target)
    return [text for text in texts if text is not None]


def refusal(
    failures: Sequence[tuple[str, str]], states: int, target: str, hint: str = ""
) -> StateFormatError:
    """The error that some states cannot be converted."""
    state, reason = failures[0]
    return StateFormatError(
        f"{len(failures):,} of {states:,} states cannot be converted to {format_name(target)}; the"
        f" first, {state[:_SHOWN]!r}: {reason}{hint}"
    )


def not_in(states: Sequence[str], target: str) -> dict[int, str]:
    """Why states are not in a format as it prints them, by index; empty if all are.

    Args:
        states: The states.
        target: The format; every text is in `as-given`.
    """
    if format_name(target) == AS_GIVEN:
        return {}
    texts, failures = _core.convert_states(states, target, target)
    found = {
        i: "is not printed as there"
        for i, (state, text) in enumerate(zip(states, texts, strict=True))
        if text != state
    }
    return found | dict(failures)
