"""Which files are inputs: files, folders with their subfolders, patterns, URLs.

Nothing below a folder is skipped silently: a folder may be partitioned (`split=train/`), and
half of a corpus would be missing from a cache that looks complete.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.parquet as pq

from ebm_encode import _core
from ebm_encode.data.remote import Found, InputFile, expand_url, is_remote, open_random
from ebm_encode.data.side_files import SIDE_FILES
from ebm_encode.errors import ArgumentError, InputError

_SUFFIXES = frozenset({".parquet", ".jsonl", ".ndjson"})
_WORK_FOLDER = ".partial"
_SET_ASIDE = (".", "_")
"""How names of folders begin that are not data, by the convention of Spark, Hive and Arrow."""
_NAMED = 3


@dataclass
class Expansion:
    """The input files that some paths stand for.

    Attributes:
        files: Each file once, also if it is given through a link or in another spelling, in the
            order of the paths, and of names below a folder.
        notes: What was skipped below folders, and why.
        warnings: What was skipped though it looks like inputs.
    """

    files: list[InputFile] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)


def expand(paths: list[str]) -> Expansion:
    """The input files that paths, folders and patterns stand for.

    A folder stands for all `.parquet`, `.jsonl` and `.ndjson` files in it and its subfolders, but
    for embedding caches, and folders whose name begins with `_` or `.`. A pattern may match
    folders, too.

    Raises:
        ArgumentError: If there is no path, or an empty one.
        InputError: If one stands for nothing, or a file that was given has an unknown extension.
    """
    if not paths or not all(paths):
        raise ArgumentError("`trajectories`: name at least one file, folder or pattern")
    expansion = Expansion()
    known: dict[InputFile | str, InputFile] = {}
    for text in paths:
        try:
            found = expand_url(text) if is_remote(text) else _expand_path(text)
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise InputError(f"{text[:80]}: cannot be read: {error}") from error
        before = len(expansion.warnings)
        chosen = _choose(found, expansion)
        if not chosen:
            skipped = "".join(f"\nhint: {note}" for note in [*expansion.warnings][before:])
            raise InputError(
                f"{text}: no such file, or a folder without .parquet or .jsonl files{skipped}"
            )
        for file in chosen:
            known.setdefault(os.path.realpath(file) if isinstance(file, Path) else file, file)
    expansion.files = list(known.values())
    return expansion


def _expand_path(text: str) -> list[Found]:
    """The files that a path or pattern of this machine stands for."""
    path = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text)
    if path.is_dir():
        return [*_below(path)]
    if path.exists():
        return [Found(path)]
    found: list[Found] = []
    folders: set[Path] = set()
    for match in sorted(map(Path, glob.glob(str(path), recursive=True))):  # noqa: PTH207
        if not folders.isdisjoint(match.parents):
            continue  # it is below a folder that matches, too
        if match.is_dir():
            folders.add(match)
            found += _below(match)
        else:
            found.append(Found(match))
    return found


def _below(folder: Path) -> Iterator[Found]:
    """All files below a folder; those of a folder before those of its subfolders, by name."""
    seen = set()  # links may lead back up
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            yield Found(path, str(folder), path.relative_to(folder).parts)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _choose(found: Iterable[Found], expansion: Expansion) -> list[InputFile]:
    """The inputs among some files; of those below a folder, the others are noted."""
    chosen: list[InputFile] = []
    skipped: dict[tuple[str, str], list[str]] = defaultdict(list)
    hidden: dict[str, int] = defaultdict(int)
    for file, folder, within in found:
        if folder is None:
            _require_input(file)
            chosen.append(file)
            continue
        aside = next((i for i, part in enumerate(within[:-1]) if part.startswith(_SET_ASIDE)), None)
        inside = any(part.endswith(_WORK_FOLDER) for part in within[:-1])
        if aside is not None and not inside:
            if file.suffix in _SUFFIXES:
                hidden["/".join([folder.rstrip("/"), *within[: aside + 1]])] += 1
        elif reason := "files of unfinished runs" if inside else _why_skipped(file):
            skipped[folder, reason].append("/".join(within))
        else:
            chosen.append(file)
    for (folder, reason), names in skipped.items():
        some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        expansion.notes[f"{folder}: skipped {len(names)} {reason} ({some})"] = None
    for name, count in hidden.items():
        expansion.warnings[
            f"{name}: skipped {count} input files, as in any folder whose name begins with _ or .;"
            " to read them, name the folder itself"
        ] = None
    return chosen


def _require_input(file: InputFile) -> None:
    if file.suffix not in _SUFFIXES:
        raise InputError(
            f"{file}: expected a file ending in .parquet, .jsonl or .ndjson\n"
            "hint: a folder may hold other files, too; a pattern that matches them can be narrowed,"
            " for example to *.parquet"
        )
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise InputError(f"{file}: is a pipe or device, expected a file: it is read twice")


def _why_skipped(file: InputFile) -> str | None:
    """Why a file below a folder is no input."""
    if file.suffix not in _SUFFIXES or (
        isinstance(file, Path) and file.exists() and not file.is_file()
    ):
        return "files of other types"
    if file.name.endswith(SIDE_FILES):
        return "lists of earlier runs"
    return "embedding caches" if file.suffix == ".parquet" and _is_cache(file) else None


def _is_cache(file: InputFile) -> bool:
    try:
        with open_random(file) as source:
            metadata = pq.read_metadata(source).metadata or {}
    except (pa.ArrowException, OSError):
        return False  # reading it as an input will say what is wrong with it
    return _core.METADATA_KEY.encode() in metadata
