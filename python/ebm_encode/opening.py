"""Opening a cache, in memory or mapped."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ebm_encode._core import EmbeddingCache, MappedCache, prefers_mapped
from ebm_encode.errors import CacheFormatError
from ebm_encode.options import OpenMode, require

Mapping.register(EmbeddingCache)
Mapping.register(MappedCache)


def open_cache(
    path: str | PathLike[str],
    *,
    mode: OpenMode = "auto",
    strict: bool = True,
    verify_checksums: bool = True,
) -> EmbeddingCache | MappedCache:
    """Opens a cache file, or a folder of them; in an object store too, where it goes to memory.

    Args:
        path: The file or folder, or its URL (`s3://`, `gs://`, `file://`).
        mode: `memory` holds all embeddings in this process and lends them without copies; `mapped`
            leaves them in the files, which all processes share, and copies them out; `auto` is
            memory if they take at most half of what is free.
        strict: Whether embeddings are validated: all on opening, or of a mapped cache each page's
            when it is first read.
        verify_checksums: Whether a page that is not what was written is refused. Without, opening
            takes about a tenth less time.

    Raises:
        CacheError: If it is no cache, damaged, or has bad embeddings.
        ArgumentError: If there is no such mode.
    """
    require("mode", mode, OpenMode)
    if mode == "mapped" or (mode == "auto" and prefers_mapped(path)):
        return MappedCache.open(path, strict=strict, verify_checksums=verify_checksums)
    return EmbeddingCache.open(path, strict=strict, verify_checksums=verify_checksums)


def reduce_cache(
    cache: EmbeddingCache | MappedCache, options: dict[str, bool]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """How pickle makes a cache again: by opening its path, so that workers share its pages."""
    path = fspath(cache.path)
    path = path if "://" in path else str(Path(path).absolute())
    return _reopen, (type(cache), path, options, _kind_of(cache))


def _kind_of(cache: EmbeddingCache | MappedCache) -> tuple[int, int, str | None]:
    """Rows, dimension and encoder."""
    return len(cache), cache.dim, None if cache.identity is None else cache.identity.to_json()


def _reopen(
    kind: type[EmbeddingCache | MappedCache],
    path: str,
    options: dict[str, bool],
    before: tuple[int, int, str | None],
) -> EmbeddingCache | MappedCache:
    """Opens a cache that was pickled.

    Raises:
        CacheFormatError: If it has become another since.
    """
    cache = kind.open(path, **options)
    if _kind_of(cache) != before:
        rows, dim, _ = before
        raise CacheFormatError(
            f"{path}: has {len(cache)} rows of {cache.dim}, when it was pickled {rows} of {dim}, or"
            " another encoder made it\nhint: open the cache again and send that to the workers"
        )
    return cache
