"""Opening a cache where its rows fit best."""

from os import PathLike
from typing import Literal

from ebm_encode._core import EmbeddingCache, MappedCache, prefers_mapped
from ebm_encode.errors import ArgumentError


def open_cache(
    path: str | PathLike[str],
    *,
    mode: Literal["auto", "memory", "mapped"] = "auto",
    strict: bool = True,
    verify_checksums: bool = True,
) -> EmbeddingCache | MappedCache:
    """Opens a cache file, or a folder of them; in an object store too, where it goes to memory.

    Args:
        path: The file or folder, or its URL (`s3://`, `gs://`, `file://`).
        mode: `memory` holds all rows in this process and lends them without copies; `mapped` leaves
            them in the files, which all processes share, and copies rows out; `auto` is memory if
            the rows take at most half of what is free.
        strict: Whether rows are checked: all on opening, or of a mapped cache each page's when it
            is first read.
        verify_checksums: Whether a page that is not what was written is refused. Without, opening
            takes about a tenth less time.

    Raises:
        CacheError: If it is no cache, damaged, or has bad rows.
        ArgumentError: If there is no such mode.
    """
    if mode not in ("auto", "memory", "mapped"):
        raise ArgumentError(f"mode {mode!r}: expected auto, memory or mapped")
    if mode == "mapped" or (mode == "auto" and prefers_mapped(path)):
        return MappedCache.open(path, strict=strict, verify_checksums=verify_checksums)
    return EmbeddingCache.open(path, strict=strict, verify_checksums=verify_checksums)
