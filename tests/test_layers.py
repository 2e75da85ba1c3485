"""The arrows between modules: nothing imports what stands above it, and none in a circle.

Imports are read from the source, those within functions and only for types included.
"""

import ast
from pathlib import Path

import pytest

from support import ROOT

PACKAGE = ROOT / "python" / "ebm_encode"

# From the bottom up: each may import what stands before it.
LAYERS = (
    "_core", "errors", "options", "versions", "texts", "digests", "state_formats",
    "data", "prompts", "torch_settings", "loading", "identity", "engines",
    "reports", "servers", "equal_embeddings", "screening", "row_checks", "encoder", "policy",
    "description",
    "opening", "dataset", "bulk",
    "heads",
    "ebm_encode",  # what the package itself offers
    "bridge", "serve", "doctor", "pipeline", "cli", "__main__",
)  # fmt: skip


def sources() -> dict[str, str]:
    """The text of each module of the package, by name; `_core` is the extension."""
    found = {"ebm_encode._core": ""}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = file.read_text()
    return found


def imports(modules: dict[str, str]) -> dict[str, set[str]]:
    """The modules of the package that each one imports."""
    found: dict[str, set[str]] = {}
    for module, text in modules.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are written in full"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                inside = whole & {*modules}
                # What is no module is a name of the one it comes from.
                named |= inside | ({node.module} if len(inside) < len(whole) else set())
        found[module] = {name for name in named if name in modules}
        unknown = {name for name in named if name.startswith("ebm_encode")} - {*modules}
        assert not unknown, f"{module}: imports what there is not: {unknown}"
    return found


def layer(module: str) -> int:
    top = module.split(".")[1] if "." in module else module
    assert top in LAYERS, f"{module}: give it a place in LAYERS"
    return LAYERS.index(top)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports of something higher, each as `importer -> imported`."""
    return sorted(
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others
        if layer(other) > layer(module)
    )


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some circle of imports, from a module to itself; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_nothing_imports_upward():
    assert upward(imports(sources())) == []


def test_nothing_imports_in_a_circle():
    assert circle(imports(sources())) == []


def test_each_layer_is_there():
    assert {*map(layer, sources())} == {*range(len(LAYERS))}


@pytest.mark.parametrize(
    "line",
    [
        "from ebm_encode.cli import main",
        "import ebm_encode.encoder",
        "def late():\n    from ebm_encode.bulk.run import BulkRun",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ebm_encode import Encoder",
        "from ebm_encode.engines import runner",
    ],
)
def test_an_import_upward_is_found(line):
    wrong = sources()
    wrong["ebm_encode.data.trajectories"] += f"\n{line}\n"
    (found,) = upward(imports(wrong))
    assert found.startswith("ebm_encode.data.trajectories -> ebm_encode")


def test_a_circle_within_a_layer_is_found():
    wrong = sources()
    wrong["ebm_encode.engines.trie"] += "\nfrom ebm_encode.engines.prefix import PrefixEngine\n"
    graph = imports(wrong)
    assert upward(graph) == []
    found = circle(graph)
    assert found[0] == found[-1]
    assert {"ebm_encode.engines.trie", "ebm_encode.engines.prefix"} <= {*found}


def test_no_file_is_long():
    """Lines of code: blank lines, comments and docstrings do not count."""

    def code_lines(file: Path) -> int:
        tree = ast.parse(file.read_text())
        lines = {node.lineno for node in ast.walk(tree) if hasattr(node, "lineno")}
        return len(lines)

    assert {str(f): n for f in PACKAGE.rglob("*.py") if (n := code_lines(f)) > 300} == {}
