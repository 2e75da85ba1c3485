"""Opening a cache where its rows fit best."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from ebm_encode._core import EmbeddingCache, MappedCache, is_remote, prefers_mapped
from ebm_encode.errors import ArgumentError, CacheFormatError

Mapping.register(EmbeddingCache)
Mapping.register(MappedCache)


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


def reduce_cache(
    cache: EmbeddingCache | MappedCache, strict: bool, verify_checksums: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """How pickle makes a cache again: by opening its path, so that workers share the file's pages."""
    path = fspath(cache.path)
    path = path if is_remote(path) else str(Path(path).absolute())
    made_by = None if cache.identity is None else cache.identity.to_json()
    kept = (type(cache), path, strict, verify_checksums, len(cache), cache.dim, made_by)
    return _reopen, kept


def _reopen(
    kind: type[EmbeddingCache | MappedCache],
    path: str,
    strict: bool,
    verify_checksums: bool,
    rows: int,
    dim: int,
    made_by: str | None,
) -> EmbeddingCache | MappedCache:
    """Opens a cache that was pickled.

    Raises:
        CacheFormatError: If it has become another since.
    """
    cache = kind.open(path, strict=strict, verify_checksums=verify_checksums)
    now = None if cache.identity is None else cache.identity.to_json()
    if (len(cache), cache.dim, now) != (rows, dim, made_by):
        raise CacheFormatError(
            f"{path}: has {len(cache)} rows of {cache.dim}, when it was pickled {rows} of {dim}, or"
            " another encoder made it\nhint: open the cache again and send that to the workers"
        )
    return cache
