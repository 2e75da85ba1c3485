"""Rust crates and the modules of `ebm-cache` depend on one another in one direction."""

import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path

RUST = Path(__file__).parent.parent / "rust"

CRATES = {
    "ebm-features": set(),
    "ebm-threads": set(),
    "ebm-http": set(),
    "ebm-kernels": {"ebm-threads"},
    "ebm-cache": {"ebm-threads"},
    "ebm-encoder": {"ebm-cache", "ebm-http", "ebm-threads"},
    "ebm-search": {"ebm-cache", "ebm-encoder", "ebm-http", "ebm-threads"},
    "ebm-embed": {"ebm-cache", "ebm-encoder", "ebm-search"},
    "ebm-encode-python": {
        *("ebm-cache", "ebm-embed", "ebm-encoder", "ebm-features", "ebm-kernels"),
        *("ebm-search", "ebm-threads"),
    },
    "ebm-prover": {"ebm-cache", "ebm-embed", "ebm-encoder", "ebm-features", "ebm-search"},
}
"""What each crate may depend on."""

LAYERS = ["format", "storage", "check", "page", "file", "folder", "read", "audit", "write"]
"""The modules of `ebm-cache`; each may use itself and those before it."""


def test_crates_depend_only_on_those_below():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]
    metadata = json.loads(subprocess.check_output(command, cwd=RUST.parent))
    found = {
        package["name"]: {
            dependency["name"]
            for dependency in package["dependencies"]
            if dependency["name"] in CRATES and dependency["kind"] is None
        }
        for package in metadata["packages"]
    }
    assert found == CRATES


def test_no_dependency_needs_a_newer_rust_than_is_stated():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline"]
    packages = json.loads(subprocess.check_output(command, cwd=RUST.parent))["packages"]

    def version(package):
        return tuple(int(part) for part in (package["rust_version"] or "1.0").split(".")[:2])

    stated = {version(package) for package in packages if package["name"] in CRATES}
    assert len(stated) == 1
    newer = [package["name"] for package in packages if version(package) > max(stated)]
    assert not newer


def sources(crate):
    """Each file's path within the crate, and its code without tests and comments."""
    root = RUST / crate / "src"
    for file in sorted(root.rglob("*.rs")):
        code = file.read_text().split("#[cfg(test)]")[0].split("#[cfg(all(test")[0]
        yield file.relative_to(root), re.sub(r"//.*", "", code)


def test_modules_of_the_cache_use_only_those_before_them():
    wrong = [
        f"{path} uses {used}"
        for path, code in sources("cache")
        if path.name != "lib.rs"
        for used in set(re.findall(r"\bcrate::(\w+)", code)) & set(LAYERS)
        if LAYERS.index(used) > LAYERS.index(path.parts[0].removesuffix(".rs"))
    ]
    assert not wrong


def modules(crate):
    """Which modules each module of a crate imports by name, within the crate."""
    files = {
        "::".join(path.with_suffix("").parts).removesuffix("::mod"): code
        for path, code in sources(crate)
    }
    files.pop("lib", None)
    files.pop("main", None)
    imports = defaultdict(set)
    for name, code in files.items():
        parent = name.rpartition("::")[0]
        nested = re.search(r"\b(?:crate|super)(?:::\w+)*::\{[^}]*\{", code)
        assert not nested, f"{crate}, {name}: one `use` for each module"
        listed = re.findall(r"\b(crate|super)::\{([^}]*)\}", code)
        paths = [(start, part.strip()) for start, parts in listed for part in parts.split(",")]
        for start, rest in paths + re.findall(r"\b(crate|super)((?:::[a-z_]\w*)+)", code):
            path = rest.removeprefix("::")
            if start == "super":
                # In `mod.rs`, and so in a folder's own module, `super` is what is above the folder.
                path = f"{parent}::{path}".removeprefix("::")
            while path and path not in files:
                path = path.rpartition("::")[0]
            # A module and those inside it are one: it declares them, and they use what it gives.
            inside = path.startswith(f"{name}::") or name.startswith(f"{path}::")
            if path and path != name and not inside:
                imports[name].add(path)
    return imports


def circle(imports):
    """Modules that import one another in a circle; empty where there is none."""
    done = set()

    def visit(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports[name]):
            if found := visit(other, [*way, name]):
                return found
        done.add(name)
        return []

    for name in sorted(imports):
        if found := visit(name, []):
            return found
    return []


def test_no_modules_import_one_another_in_a_circle():
    for crate in (
        "cache",
        "encoder",
        "search",
        "embed",
        "http",
        "kernels",
        "threads",
        "python",
        "prover",
    ):
        found = modules(crate)
        assert circle(found) == [], crate


def test_a_circle_is_found():
    assert circle(defaultdict(set, {"a": {"b"}, "b": {"c"}, "c": {"a"}})) == ["a", "b", "c", "a"]
    assert modules("cache")["read::in_memory"] >= {"read::batch", "check::row_check"}
