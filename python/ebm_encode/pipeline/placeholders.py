"""Placeholders in the strings of a configuration."""

import string
from collections.abc import Mapping
from typing import Any

_RESERVED = ("python", "folder", "model")


class PlaceholderError(ValueError):
    """A placeholder that cannot be filled in.

    Args:
        key: The key of the string.
        why: What is wrong.
    """

    def __init__(self, key: tuple[str, ...], why: str) -> None:
        super().__init__(why)
        self.key = key


def require_plain(name: str, value: str) -> None:
    """Refuses a variable that hides another name, or would have to be filled in itself.

    Raises:
        PlaceholderError: If it is such a one.
    """
    if name in _RESERVED:
        raise PlaceholderError(("variables", name), "is a name that has a meaning")
    if "{" in value or "}" in value:
        raise PlaceholderError(("variables", name), "holds a brace: variables have no placeholders")


def filled_in(config: Mapping[str, Any], folder: str, known: Mapping[str, str]) -> dict[str, Any]:
    """A configuration with its placeholders filled in.

    Args:
        config: The tables as they are given.
        folder: The iteration's folder, if it is not given.
        known: Values by name; `folder` is added.

    Raises:
        PlaceholderError: If there is no such name, or a brace is alone.
    """
    iteration = dict(config.get("iteration", {}))
    folder = _filled(iteration.pop("folder", folder), ("iteration", "folder"), known)
    names = {**known, "folder": folder}
    whole = {**config, "iteration": {**_filled(iteration, ("iteration",), names), "folder": folder}}
    whole["steps"] = _filled(config["steps"], ("steps",), names)
    if "server" in config:
        # Which model it is started with is known then.
        begin = {**names, "model": "{model}"}
        whole["server"] = {
            key: _filled(value, ("server", key), begin if key == "start" else names)
            for key, value in config["server"].items()
        }
    return whole


def _filled(value: Any, key: tuple[str, ...], names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _fill(value, key, names)
    if isinstance(value, dict):
        return {name: _filled(inner, (*key, str(name)), names) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, (*key, str(place)), names) for place, inner in enumerate(value)]
    return value


def _fill(text: str, key: tuple[str, ...], names: Mapping[str, str]) -> str:
    """Fills in `{name}`, and nothing else of what Python's format language has."""
    try:
        found = [*string.Formatter().parse(text)]
    except ValueError as error:
        why = "has a brace without its pair\nhint: write {{ for a brace"
        raise PlaceholderError(key, why) from error
    parts = []
    for before, name, form, conversion in found:
        parts.append(before)
        if name is None:
            continue
        if name not in names or form or conversion:
            why = f"has an unknown placeholder {{{name}}}\nhint: write {{{{ for a brace"
            raise PlaceholderError(key, why)
        parts.append(names[name])
    return "".join(parts)
