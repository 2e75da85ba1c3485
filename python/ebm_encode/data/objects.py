"""Input files in object stores, through pyarrow."""

import io
import os
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, cast

import blake3
import pyarrow as pa
from pyarrow import fs

from ebm_encode.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

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
        return io.BufferedReader(_Bytes(files.open_input_file(key)), _BLOCK)

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


class _Bytes(io.RawIOBase):
    """The bytes of an object; past its end there are none, where Google's store has an error."""

    def __init__(self, file: pa.NativeFile) -> None:
        super().__init__()
        self._file = file
        # The stubs leave out its second argument.
        self._read_at = cast("Callable[[int, int], bytes]", file.read_at)
        self._size = file.size()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        if wanted == 0:
            return 0
        found = self._read_at(wanted, self._at)
        view[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


InputFile = Path | ObjectFile


class Found(NamedTuple):
    """A file that was named, or that is below a folder that was.

    Attributes:
        file: The file.
        folder: The folder that was named or matched by a pattern; `None` if the file itself was.
        within: The parts of the file's name below that folder.
    """

    file: InputFile
    folder: str | None = None
    within: tuple[str, ...] = ()


def expand_url(url: str) -> list[Found]:
    """The objects that a URL stands for: one, all those below it, or those of a pattern.

    Raises:
        InputError: If the store cannot be asked, or the pattern has `**`.
    """
    if "**" in url:
        raise InputError(
            f"{url}: ** is for files of this machine\nhint: name the folders with *, or the folder"
            " above them: its subfolders are read"
        )
    scheme = url.split("://", 1)[0]
    files, key = _split(url)
    try:
        info = files.get_file_info(key)
        if info.type is fs.FileType.File:
            return [Found(ObjectFile(f"{scheme}://{info.path}"))]
        parts = key.split("/")
        # All levels at once: not every store tells of folders that no object was made for.
        fixed = next((i for i, part in enumerate(parts) if _WILDCARDS & set(part)), len(parts))
        below = _below(files, "/".join(parts[:fixed]))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{url}: cannot be read: {error}") from error
    names = sorted(info.path.split("/") for info in below if info.type is fs.FileType.File)
    return [
        _found(scheme, name, len(parts))
        for name in names
        # No part of a pattern stands for several parts of a name.
        if all(map(fnmatchcase, name[fixed:], parts[fixed:])) and len(name) >= len(parts)
    ]


def _found(scheme: str, name: list[str], depth: int) -> Found:
    file = ObjectFile(f"{scheme}://{'/'.join(name)}")
    if len(name) == depth:
        return Found(file)
    return Found(file, f"{scheme}://{'/'.join(name[:depth])}", tuple(name[depth:]))


def _below(files: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
    return files.get_file_info(selector)


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
    if scheme == "gs" and google:
        # As Google's own libraries take it: a server other than Google's, which asks for no name.
        protocol, _, host = google.rpartition("://")
        return fs.GcsFileSystem(
            anonymous=True,
            scheme=protocol or "http",
            endpoint_override=host,
            retry_time_limit=_PATIENCE,
        )
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=_PATIENCE)
    return fs.S3FileSystem(region=region, endpoint_override=endpoint)
