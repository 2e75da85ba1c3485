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
) -> EmbeddingCache | MappedCache:
    """Opens a cache file, or a folder of them.

    Args:
        path: The file or folder.
        mode: `memory` holds all rows in this process and lends them without copies; `mapped` leaves
            them in the files, which all processes share, and copies rows out; `auto` is memory if
            the rows take at most half of what is free.
        strict: Whether all rows are checked on opening (in memory only; of a mapped cache each page
            is checked when it is first read).

    Raises:
        CacheError: If it is no cache, damaged, or has bad rows.
        ArgumentError: If there is no such mode.
    """
    if mode not in ("auto", "memory", "mapped"):
        raise ArgumentError(f"mode {mode!r}: expected auto, memory or mapped")
    if mode == "mapped" or (mode == "auto" and prefers_mapped(path)):
        return MappedCache.open(path)
    return EmbeddingCache.open(path, strict=strict)
