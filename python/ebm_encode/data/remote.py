"""Input files in object stores and on the Hugging Face Hub, by pyarrow's file systems.

Keys and endpoints come from the environment, as for any tool of those stores.
"""

import io
import os
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
from pyarrow import fs

from ebm_encode import _core
from ebm_encode.errors import InputError

_HUB = "hf"
_WILDCARDS = frozenset("*?[")
_BLOCK = 1 << 22
_PATIENCE = timedelta(seconds=60)
"""For a store that does not answer; pyarrow would try for a quarter of an hour."""


class Stamp(NamedTuple):
    """What a file's change shows in."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True)
class RemoteFile:
    """A remote file with the methods that `pathlib.Path` has for files.

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
        """The extension of its name."""
        return PurePosixPath(self.url).suffix

    def stat(self) -> Stamp:
        """Its size and time of modification."""
        files, key = _split(self.url)
        info = files.get_file_info(key)
        return Stamp(info.size or 0, info.mtime_ns or 0)


InputFile = Path | RemoteFile


def open_random(file: InputFile) -> BinaryIO | pa.NativeFile:
    """Opens a file for reading at any place, as Parquet is read.

    Raises:
        OSError: If it cannot be opened.
    """
    if isinstance(file, Path):
        return file.open("rb")
    files, key = _split(file.url)
    return files.open_input_file(key)


def open_stream(file: InputFile) -> BinaryIO:
    """Opens a file for reading from its start to its end.

    Raises:
        OSError: If it cannot be opened.
    """
    if isinstance(file, Path):
        return file.open("rb")
    files, key = _split(file.url)
    stream = files.open_input_stream(key)
    return io.BufferedReader(cast("io.RawIOBase", stream), _BLOCK)


class Found(NamedTuple):
    """A file that was given, or that is below a folder that was.

    Attributes:
        file: The file.
        folder: The folder that was given or matched by a pattern; `None` if the file itself was.
        within: The parts of the file's name below that folder.
    """

    file: InputFile
    folder: str | None = None
    within: tuple[str, ...] = ()


def is_remote(text: str) -> bool:
    """Whether an input is a URL of a store or of the hub.

    Raises:
        ArgumentError: If it is a URL of something else.
    """
    return text.startswith(f"{_HUB}://") or _core.is_remote(text)


def expand_url(url: str) -> list[Found]:
    """The files that a URL stands for: one, all those below it, or those of a pattern.

    Raises:
        InputError: If the store cannot be asked, or the pattern has `**`.
    """
    if "**" in url:
        raise InputError(
            f"{url}: ** is for files of this machine\nhint: name the folders with *, or the folder"
            " above them: its subfolders are read"
        )
    scheme = url.split("://", 1)[0]
    try:
        files, key = _split(url)
        info = files.get_file_info(key)
        if info.type is fs.FileType.File:
            return [Found(RemoteFile(f"{scheme}://{info.path}"))]
        parts = key.split("/")
        # All levels at once: not every store tells of folders that no object was made for.
        fixed = next((i for i, part in enumerate(parts) if _WILDCARDS & set(part)), len(parts))
        selector = fs.FileSelector("/".join(parts[:fixed]), allow_not_found=True, recursive=True)
        below = files.get_file_info(selector)
    except (OSError, ValueError, pa.ArrowException) as error:  # the hub refuses some names so
        raise InputError(f"{url}: cannot be read: {error}") from error
    names = sorted(info.path.split("/") for info in below if info.type is fs.FileType.File)
    return [
        _found(scheme, name, len(parts))
        for name in names
        # No part of a pattern stands for several parts of a name.
        if all(map(fnmatchcase, name[fixed:], parts[fixed:])) and len(name) >= len(parts)
    ]


def _found(scheme: str, name: list[str], depth: int) -> Found:
    file = RemoteFile(f"{scheme}://{'/'.join(name)}")
    if len(name) == depth:
        return Found(file)
    return Found(file, f"{scheme}://{'/'.join(name[:depth])}", tuple(name[depth:]))


def _split(url: str) -> tuple[fs.FileSystem, str]:
    scheme, key = url.split("://", 1)
    return _file_system(scheme, _settings()), key.rstrip("/")


def _settings() -> tuple[str | None, ...]:
    """What of the environment pyarrow is told; the rest, such as keys, it finds by itself."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return region, endpoint, os.environ.get("STORAGE_EMULATOR_HOST")


@cache
def _file_system(scheme: str, settings: tuple[str | None, ...]) -> fs.FileSystem:
    region, endpoint, google = settings
    if scheme == _HUB:
        return fs.FileSystem.from_uri(f"{_HUB}://")[0]
    if scheme == "s3":
        return fs.S3FileSystem(region=region, endpoint_override=endpoint)
    if google:
        # As Google's own libraries take it: a server other than Google's, which asks for no name.
        protocol, _, host = google.rpartition("://")
        return fs.GcsFileSystem(
            anonymous=True,
            scheme=protocol or "http",
            endpoint_override=host,
            retry_time_limit=_PATIENCE,
        )
    return fs.GcsFileSystem(retry_time_limit=_PATIENCE)
