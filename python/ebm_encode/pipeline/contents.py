"""Digests of what steps read and write: files, whole folders, patterns."""

import glob
from collections.abc import Iterable
from pathlib import Path

from ebm_encode.digests import digest_file, digest_json
from ebm_encode.errors import InputError

MISSING = "missing"
"""In place of a digest, where there is no file."""
NOT_COMPARED = "not compared"
"""In place of a digest: of hub ids, names and URLs, whose contents are not read."""


def digests_of(given: Iterable[str]) -> dict[str, str]:
    """The digest of each input; patterns are replaced by what they match now.

    Args:
        given: Absolute paths and patterns; what is neither is not compared.

    Raises:
        InputError: If a file cannot be read.
    """
    found: dict[str, str] = {}
    for path in given:
        if not path.startswith("/") and not Path(path).is_absolute():
            found[path] = NOT_COMPARED
        elif glob.has_magic(path) and not Path(path).exists():
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  (it is absolute)
            found |= {match: digest_path(Path(match)) for match in matches}
            if not matches:
                found[path] = MISSING
        else:
            found[path] = digest_path(Path(path))
    return found


def digest_path(path: Path) -> str:
    """Digest of a file, or of a folder with everything in it; `MISSING` if it is not there.

    Raises:
        InputError: If something in it cannot be read.
    """
    try:
        if not path.is_dir():
            return digest_file(path) if path.exists() else MISSING
        # Links to folders are followed: hub snapshots consist of links.
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_json({str(file.relative_to(path)): digest_file(file) for file in files})
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def newest_change(path: Path) -> float:
    """When a file, or anything in a folder, was last changed; seconds since 1970, 0 if missing."""
    if not path.exists():
        return 0.0
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(max(stat.st_mtime, stat.st_ctime) for stat in (file.lstat() for file in files))
