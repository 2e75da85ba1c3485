"""Lines of keys in a TOML file, for error messages: tomllib does not tell them."""

import tomllib

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

_TOML = Language(tree_sitter_toml.language())


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """The line on which each key of a TOML file is written, counted from 1, by the whole key.

    Args:
        text: The file, which is valid TOML.
    """
    lines: dict[tuple[str, ...], int] = {}
    for node in Parser(_TOML).parse(text.encode()).root_node.named_children:
        if node.type == "pair":
            _add(node, (), lines)
        elif node.type in ("table", "table_array_element"):
            key, *pairs = [child for child in node.named_children if child.type != "comment"]
            table = _names(key)
            lines.setdefault(table, _line(key))
            for pair in pairs:
                _add(pair, table, lines)
    return lines


def _add(pair: Node, table: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    key, value = pair.named_children[0], pair.named_children[-1]
    whole = (*table, *_names(key))
    lines[whole] = _line(pair)
    if value.type == "inline_table":
        for child in value.named_children:
            if child.type == "pair":
                _add(child, whole, lines)
    elif value.type == "array":
        for number, child in enumerate(c for c in value.named_children if c.type != "comment"):
            lines[(*whole, str(number))] = _line(child)


def _names(key: Node) -> tuple[str, ...]:
    """The parts of a key, without quotes."""
    found = tomllib.loads(f"{(key.text or b'').decode()} = 0")
    names: list[str] = []
    while isinstance(found, dict):
        name, found = next(iter(found.items()))
        names.append(name)
    return tuple(names)


def _line(node: Node) -> int:
    return node.start_point.row + 1
