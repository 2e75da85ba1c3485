"""Digests of what steps read and write: files, whole folders, patterns."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ebm_encode.digests import digest_file, digest_json
from ebm_encode.errors import InputError
from ebm_encode.pipeline.records import sync_path

MISSING = "missing"
"""In place of a digest, where there is no file."""
_ESCAPED = re.compile(r"\[([*?[])\]")
NOT_COMPARED = "not compared"
"""In place of a digest: of hub ids, names and URLs, whose contents are not read."""


def digests_of(given: Iterable[str]) -> dict[str, str]:
    """The digest of each input; patterns are replaced by what they match now.

    Args:
        given: Absolute patterns, as `escaped` writes those of one path; what is neither is not
            compared.

    Raises:
        InputError: If a file cannot be read.
    """
    found: dict[str, str] = {}
    for pattern in given:
        if not Path(pattern).is_absolute():
            found[pattern] = NOT_COMPARED
            continue
        path = literal(pattern)
        if path is not None:
            found[_shown(path)] = digest_path(path)
            continue
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207  (it is absolute)
        found |= {_shown(Path(match)): digest_path(Path(match)) for match in matches}
        if not matches:
            found[pattern] = MISSING
    return found


def literal(pattern: str) -> Path | None:
    """The path that a pattern is, if it matches no other one."""
    plain = _ESCAPED.sub(r"\1", pattern)
    return Path(plain) if glob.escape(plain) == pattern else None


def fixed(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard; all of a path."""
    parts = Path(pattern).parts
    plain = [literal(part) for part in parts]
    end = plain.index(None) if None in plain else len(plain)
    return Path(*[str(part) for part in plain[:end]])


def _shown(path: Path) -> str:
    """A path as text that any file may hold."""
    return os.fsencode(path).decode(errors="backslashreplace")


def digest_path(path: Path) -> str:
    """Digest of a file, or of a folder with everything in it; `MISSING` if it is not there.

    Raises:
        InputError: If something in it cannot be read, or is neither file nor folder.
    """
    try:
        if not path.is_dir():
            return _digest_file(path) if path.exists() else MISSING
        return digest_json({_shown(f.relative_to(path)): _digest_file(f) for f in _files(path)})
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _files(folder: Path) -> list[Path]:
    """All files below a folder. Links to folders are followed, once: hub snapshots have them."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        stat = Path(here).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        # Links that lead nowhere, pipes and sockets are no content.
        found += [Path(here, name) for name in names if Path(here, name).is_file()]
    return sorted(found)


def _digest_file(path: Path) -> str:
    if not path.is_file():  # reading a pipe would wait for ever
        raise InputError(f"{path}: is neither a file nor a folder\nhint: leave it out of `inputs`")
    return digest_file(path)


def sync_whole(path: Path) -> None:
    """Has a file, or a folder with everything in it, and its name on disk.

    Raises:
        OSError: If that fails.
    """
    files = _files(path) if path.is_dir() else [path]
    folders = {path.parent, path.resolve().parent, *(file.parent for file in files)}
    if path.is_dir():
        folders |= {Path(here) for here, _, _ in os.walk(path)}
    for one in (*files, *folders):
        sync_path(one)


def touch_mark(path: Path) -> str:
    """Another one after each write to a file, or to anything in a folder; `MISSING` without one."""
    if not path.exists():
        return MISSING
    files = {path, *path.rglob("*"), *_files(path)} if path.is_dir() else {path}
    stats = [
        (_shown(file), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for file in sorted(files)
        if file.exists()
        for stat in (file.lstat(), file.stat())
    ]
    return digest_json(stats)


def changed_at(path: Path) -> float:
    """When something in a file or folder was last changed; seconds since 1970, 0 without one.

    Also when it, or a link on the way to it, was put where it is: what is moved or copied may keep
    the time of its last write.
    """
    links = [above for above in path.parents if above.is_symlink()]
    files = {path, *links, *path.rglob("*"), *_files(path)} if path.is_dir() else {path, *links}
    stats = [stat for file in files if file.exists() for stat in (file.lstat(), file.stat())]
    return max((max(stat.st_mtime, stat.st_ctime) for stat in stats), default=0.0)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches a path, or a folder that it is in."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))
    parts, own = Path(pattern).parts, Path(path).parts
    return len(parts) <= len(own) and all(map(fnmatch.fnmatchcase, own, parts))
