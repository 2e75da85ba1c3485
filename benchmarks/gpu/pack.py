"""Wheels and states in one folder, for a machine that has torch and transformers but no network."""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Set as AbstractSet
from email import message_from_bytes
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
PRESENT = ("torch", "transformers", "pyarrow")
"""What the machine has, with all that they need."""
PEERS = ("sentence-transformers",)
NOT_IMPORTED = ("matplotlib", "tree-sitter", "tree-sitter-toml")
"""What ours asks for, but no part of it that is measured imports."""
LIMIT = 64 * 2**20
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34)  # minor versions that wheels are built for
OLDER = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, help="new folder")
    add("--wheel", type=Path, help="our wheel (default: maturin builds it)")
    add("--states", type=Path, nargs="*", default=[], help="Parquet files with states to measure")
    add("--find-links", type=Path, help="folder with all wheels, instead of a registry")
    add("--python", default="3.12", help="the machine's Python")
    add("--present", nargs="*", default=[], help="what else the machine has, with its needs")
    add("--carry", nargs="*", default=[], help="what to take along though the machine has it")


def pack(options: Any) -> int:
    """Fills the folder; 2 if the wheels are too large together."""
    folder: Path = options.folder
    folder.mkdir(parents=True)
    ours = _our_wheel(options.wheel, folder)
    wanted = [*_requirements(ours), *PEERS, *options.carry]
    present = [name for name in (*PRESENT, *options.present) if name not in options.carry]
    source = ["--no-index", "--find-links", str(options.find_links)] if options.find_links else []
    pins, needs = _resolve([*map(str, wanted), *present], options.python, source)
    there = closure(present, needs)
    again = closure(options.carry, needs, without={*present})
    has = (there - again) | {*present}
    names = [canonicalize_name(Requirement(str(one)).name) for one in wanted]
    carried = closure(names, needs, without={*NOT_IMPORTED} | has)
    if carried:
        exact = [f"{name}=={pins[name]}" for name in sorted(carried)]
        _download([*source, *exact], folder, options.python)
    wheels = _described(sorted(folder.glob("*.whl")), options.python)
    states = _write_states(options.states, folder)
    manifest = {"python": options.python, "wheels": wheels, "states": states}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return _tell(folder, wheels)


def _tell(folder: Path, wheels: list[dict[str, Any]]) -> int:
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(wheels)} wheels, {total / 2**20:.1f} MiB in {folder}")
    if total <= LIMIT:
        return 0
    largest = sorted(wheels, key=lambda wheel: -wheel["bytes"])[:3]
    names = ", ".join(f"{wheel['name']} ({wheel['bytes'] / 2**20:.1f} MiB)" for wheel in largest)
    print(
        f"{folder}: more than {LIMIT / 2**20:.0f} MiB; the largest are {names}\n"
        "hint: if the machine has one of them, say so with --present",
        file=sys.stderr,
    )
    return 2


def _our_wheel(given: Path | None, folder: Path) -> Path:
    """Our wheel, in the folder; its extension is of the stable ABI, for Python 3.11 and newer."""
    if given is not None:
        target = folder / given.name
        target.write_bytes(given.read_bytes())
        return target
    command = [sys.executable, "-m", "maturin", "build", "--interpreter", sys.executable]
    command += ["--release", "--locked", "--out", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return next(folder.glob("ebm_encode-*.whl"))


def _requirements(wheel: Path) -> list[Requirement]:
    """What a wheel says that it needs, with markers."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        needs = message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    # Extras are for what is not measured.
    return [one for one in map(Requirement, needs) if "extra ==" not in str(one.marker)]


def _resolve(
    wanted: list[str], python: str, source: list[str]
) -> tuple[dict[str, str], dict[str, set[str]]]:
    """The versions of all that some requirements need, and what each needs, by name.

    Versions are those of requirements.lock, with which this project is tested.
    """
    with tempfile.TemporaryDirectory() as temporary:
        lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        pinned = [line for line in lock if "==" in line and "[" not in line]
        constraints, asked = Path(temporary, "constraints.txt"), Path(temporary, "asked.txt")
        constraints.write_text("\n".join(pinned), encoding="utf-8")
        asked.write_text("\n".join(wanted), encoding="utf-8")
        command = [
            find_uv_bin(), "pip", "compile", str(asked), "--constraint", str(constraints),
            "--python-version", python, "--python-platform", "x86_64-manylinux_2_28",
            "--quiet", "--only-binary", ":all:", "--no-header", "--annotation-style", "line",
            *source,
        ]  # fmt: skip
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    pins: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        pin, _, parents = line.partition("# via ")
        name, _, version = pin.strip().partition("==")
        pins[name] = version
        for parent in parents.split(", "):
            needs.setdefault(parent, set()).add(name)
    return pins, needs


def closure(
    names: list[str], needs: dict[str, set[str]], without: AbstractSet[str] = frozenset()
) -> set[str]:
    """Names with all that they need, without some and what only those need."""
    found: set[str] = set()
    left = [name for name in names if name not in without]
    while left:
        name = left.pop()
        found.add(name)
        left += needs.get(name, set()) - found - without
    return found


def _download(exact: list[str], folder: Path, python: str) -> None:
    tags = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms = [option for tag in (*tags, *OLDER) for option in ("--platform", tag)]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--implementation", "cp", "--python-version", python, *platforms,
        "--dest", str(folder), *exact,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def _described(wheels: list[Path], python: str) -> list[dict[str, Any]]:
    """Each wheel with what the others ask of it."""
    asked: dict[str, set[str]] = {}
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for wheel in wheels:
        for need in _requirements(wheel):
            if need.marker is None or need.marker.evaluate(environment):
                asked.setdefault(canonicalize_name(need.name), set()).add(str(need.specifier))
    return [
        {
            "file": wheel.name,
            "name": canonicalize_name(wheel.name.split("-")[0]),
            "version": wheel.name.split("-")[1],
            "asked_for": ",".join(
                sorted(filter(None, asked.get(canonicalize_name(wheel.name.split("-")[0]), ())))
            ),
            "bytes": wheel.stat().st_size,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        }
        for wheel in wheels
    ]


def _write_states(files: list[Path], folder: Path) -> int:
    """The distinct states of some files, as `states.parquet`; their number."""
    if not files:
        return 0
    import corpus
    import pyarrow as pa
    import pyarrow.parquet as pq

    states = corpus.real_states(files)
    table = pa.table({"state_pp": states})
    pq.write_table(table, folder / "states.parquet", compression="zstd", compression_level=19)
    return len(states)
