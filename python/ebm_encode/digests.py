"""Digests of files, and of JSON values; those of large files are remembered.

A remembered digest counts as long as the file's path, size, and times of modification and of
inode change stay the same, so a model of many gigabytes is hashed once.
"""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import blake3
import numpy as np
import platformdirs
from numpy.typing import NDArray

_BLOCK = 1 << 22


def digest_json(value: Any) -> str:
    """Digest of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"blake3:{blake3.blake3(text.encode()).hexdigest()}"


def digest_tokens(ids: NDArray[np.uint32]) -> int:
    """64-bit digest of a token sequence, to be compared within one encoder."""
    return int.from_bytes(blake3.blake3(ids.tobytes()).digest(length=8), "little")


def digest_files(files: list[Path]) -> str:
    """Digest of several files together, by their names and contents."""
    return digest_json({file.name: digest_file(file) for file in files})


def digest_file(file: Path) -> str:
    """Digest of a file's content, from memory if the file has not changed since.

    Raises:
        OSError: If it cannot be read.
    """
    path = file.resolve()
    stat = path.stat()
    key = (os.fsencode(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    known = _recall(key)
    if known is not None:
        return known
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    digest = f"blake3:{hasher.update_mmap(path).hexdigest()}"
    _remember(key, digest)
    return digest


def digest_stream(source: BinaryIO) -> str:
    """Digest of what a stream holds from here to its end.

    Raises:
        OSError: If it cannot be read.
    """
    hasher = blake3.blake3()
    while block := source.read(_BLOCK):
        hasher.update(block)
    return f"blake3:{hasher.hexdigest()}"


def _memory() -> sqlite3.Connection:
    folder = platformdirs.user_cache_path("ebm-encode", ensure_exists=True)
    connection = sqlite3.connect(folder / "digests.sqlite", timeout=10)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS digests_by_path"
        " (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, digest TEXT)"
    )
    return connection


def _recall(key: tuple[bytes, int, int, int]) -> str | None:
    try:
        with closing(_memory()) as memory:
            found = memory.execute(
                "SELECT digest FROM digests_by_path"
                " WHERE path = ? AND size = ? AND modified = ? AND changed = ?",
                key,
            ).fetchone()
    except (sqlite3.Error, OSError):
        return None  # a memory that cannot be read costs time, nothing else
    return None if found is None else str(found[0])


def _remember(key: tuple[bytes, int, int, int], digest: str) -> None:
    try:
        with closing(_memory()) as memory, memory:
            memory.execute(
                "INSERT OR REPLACE INTO digests_by_path VALUES (?, ?, ?, ?, ?)", (*key, digest)
            )
    except (sqlite3.Error, OSError):
        return  # the same
