"""Input files in object stores, through pyarrow."""

import io
import os
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple, cast

import blake3
import pyarrow as pa
from pyarrow import fs

from ebm_encode.errors import InputError

_WILDCARDS = frozenset("*?[")
_BLOCK = 1 << 22
_PATIENCE = timedelta(seconds=60)
"""For a store that does not answer; pyarrow would try for a quarter of an hour."""


class Stamp(NamedTuple):
    """What a file's change shows in."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class ObjectFile:
    """An object with the methods that `pathlib.Path` has for files.

    Attributes:
        url: Its URL.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.url).name

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        return PurePosixPath(self.url).suffix

    def open(self, mode: str) -> io.BufferedReader:
        """Opens it; `mode` is `rb`."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: objects are read only, as bytes")
        files, key = _split(self.url)
        raw = cast("io.RawIOBase", files.open_input_file(key))  # it has all of its methods
        return io.BufferedReader(raw, _BLOCK)

    def stat(self) -> Stamp:
        """Its size and time of modification."""
        files, key = _split(self.url)
        info = files.get_file_info(key)
        return Stamp(info.size or 0, info.mtime_ns or 0)

    def digest(self) -> str:
        """Digest of its content."""
        hasher = blake3.blake3()
        with self.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
        return f"blake3:{hasher.hexdigest()}"


def expand_url(url: str) -> list[ObjectFile]:
    """The objects that a URL stands for: one, those right below it, or those of a pattern.

    Raises:
        InputError: If the store cannot be asked, or the pattern has `**`.
    """
    if "**" in url:
        raise InputError(f"{url}: ** is for files of this machine; name the folders with *")
    scheme = url.split("://", 1)[0]
    files, key = _split(url)
    try:
        info = files.get_file_info(key)
        if info.type is fs.FileType.File:
            found = [info]
        else:
            found = _match(files, key) if _WILDCARDS & set(key) else _below(files, key)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{url}: cannot be read: {error}") from error
    names = sorted(info.path for info in found if info.type is fs.FileType.File)
    return [ObjectFile(f"{scheme}://{name}") for name in names]


def _match(files: fs.FileSystem, pattern: str) -> list[fs.FileInfo]:
    """What a pattern stands for, one part of the names after the other."""
    first, *rest = pattern.split("/")
    found = [fs.FileInfo(first, type=fs.FileType.Directory)]
    for part in rest:
        inside = [info for folder in found for info in _below(files, folder.path)]
        found = [info for info in inside if fnmatchcase(info.base_name, part)]
    return found


def _below(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    return files.get_file_info(fs.FileSelector(folder, allow_not_found=True))


def _split(url: str) -> tuple[fs.FileSystem, str]:
    scheme, key = url.split("://", 1)
    return _file_system(scheme, _settings()), key.rstrip("/")


def _settings() -> tuple[str | None, ...]:
    """What of the environment pyarrow is told; the rest, such as keys, it finds by itself."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return region, endpoint


@cache
def _file_system(scheme: str, settings: tuple[str | None, ...]) -> fs.FileSystem:
    region, endpoint = settings
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=_PATIENCE)
    return fs.S3FileSystem(region=region, endpoint_override=endpoint)
