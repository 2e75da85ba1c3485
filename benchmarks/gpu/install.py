"""Installs from a pack what a machine without network lacks. Needs `pip` and `packaging`."""

import argparse
import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

OURS = "ebm-encode"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder that `pack` made")
    parser.add_argument("--target", type=Path, required=True, help="where to, for PYTHONPATH")


def install(options: Any) -> int:
    """Installs what is not there, or older than asked for; 2 if the machine cannot measure."""
    manifest = json.loads((options.folder / "manifest.json").read_text(encoding="utf-8"))
    missing = [name for name in ("torch", "transformers") if version_of(name) is None
               and name not in {wheel["name"] for wheel in manifest["wheels"]}]  # fmt: skip
    if missing:
        print(
            f"{sys.executable}: has no {' and no '.join(missing)}\n"
            "hint: PYTHON=... chooses another Python",
            file=sys.stderr,
        )
        return 2
    chosen, there = [], []
    for wheel in manifest["wheels"]:
        file = options.folder / wheel["file"]
        if hashlib.sha256(file.read_bytes()).hexdigest() != wheel["sha256"]:
            print(f"{file}: damaged\nhint: pack and copy it again", file=sys.stderr)
            return 2
        has = version_of(wheel["name"])
        if wheel["name"] != OURS and has and suits(has, wheel["asked_for"]):
            there.append(f"{wheel['name']} {has}")
        else:
            chosen.append(wheel)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
               "--no-compile", "--disable-pip-version-check", "--target", str(options.target),
               *[str(options.folder / wheel["file"]) for wheel in chosen]]  # fmt: skip
    subprocess.run(command, check=True)
    print(f"{len(chosen)} installed: {', '.join(w['name'] + ' ' + w['version'] for w in chosen)}")
    print(f"{len(there)} there already: {', '.join(there)}")
    return 0


def version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def suits(version: str, asked_for: str) -> bool:
    return SpecifierSet(asked_for).contains(version, prereleases=True)
