"""Folders that are there as a whole or not at all, whatever ends a program."""

import os
import shutil
from pathlib import Path


def unfinished_name(output: Path) -> Path:
    """Where an output is made: beside it, so that a rename brings it to its place."""
    return output.with_name(f"{output.name}.unfinished")


def fresh_folder(output: Path) -> Path:
    """An empty folder to make an output in; what a killed program left there is removed."""
    folder = unfinished_name(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def publish(unfinished: Path, output: Path) -> None:
    """Brings a finished folder to its place, in the place of a former one.

    Its files are on the disk before it has the name. Killed between the two renames, there is no
    output, and the former one has the ending `.former`.
    """
    for folder, _, files in os.walk(unfinished):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))
    former = output.with_name(f"{output.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if output.exists():
        output.rename(former)
    unfinished.rename(output)
    _sync(output.parent)
    shutil.rmtree(former, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
