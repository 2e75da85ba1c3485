"""What is known of steps that ran: JSON files in the iteration's folder, each written at once."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from ebm_encode.errors import InputError

log = logging.getLogger(__name__)

RECORDS = "records"
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Record:
    """A step that was done.

    Attributes:
        step: Its name.
        command: Digest of its command and environment.
        shown: The command, to be read.
        inputs: Digests of inputs, by path.
        outputs: Digests of outputs, by path.
        seconds: How long it took.
        ended: When, ISO 8601.
        figures: Key figures of what it reported.
        version: The version of this package.
    """

    step: str
    command: str
    shown: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: float
    ended: str
    figures: dict[str, float] = field(default_factory=dict)
    version: str = ""

    @property
    def at(self) -> float:
        """When it ended, seconds since 1970; 0 where that cannot be read."""
        try:
            return datetime.fromisoformat(self.ended).timestamp()
        except ValueError:
            return 0.0

    def write(self, folder: Path) -> None:
        """Writes it.

        Raises:
            OSError: If that fails; a former record is then still there.
        """
        write_json(_path(folder, self.step), asdict(self))

    @classmethod
    def read(cls, folder: Path, step: str) -> Self | None:
        """The record of a step; `None` if there is none, or what there is cannot be read."""
        return read_known(_path(folder, step), cls)


@dataclass(frozen=True)
class Attempt:
    """A step that began and is not known to be done.

    Attributes:
        key: Digest of its command and of the inputs that may not grow.
        before: Digests of its outputs before the first try with that key.
        replaces: Whether what it wrote before that is of no use.
        refused: Marks of its outputs when they were refused because it had not touched them.
    """

    key: str
    before: dict[str, str]
    replaces: bool
    refused: dict[str, str] | None = None

    @classmethod
    def read(cls, folder: Path, step: str) -> Self | None:
        """The attempt of a step; `None` if there is none, or it cannot be read."""
        return read_known(_attempt(folder, step), cls)

    def write(self, folder: Path, step: str) -> None:
        """Writes it.

        Raises:
            OSError: If that fails.
        """
        write_json(_attempt(folder, step), asdict(self))

    @staticmethod
    def remove(folder: Path, step: str) -> None:
        """Forgets the attempt of a step."""
        _attempt(folder, step).unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file as a whole, on disk when this returns.

    Raises:
        OSError: If that fails; what was there before is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def read_known(path: Path, kind: type[Kind]) -> Kind | None:
    """What a file says, as a dataclass; `None` if there is no such file.

    A damaged file is told and counts as none: what it said is done or found out again. Keys that
    the dataclass lacks are of another version, and ignored.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        log.warning("%s is damaged and counts as if it were not there: %s", path, reason)
        return None


def sync_path(path: Path) -> None:
    """Has a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _path(folder: Path, step: str) -> Path:
    return folder / RECORDS / f"{step}.json"


def _attempt(folder: Path, step: str) -> Path:
    return folder / RECORDS / f"{step}.attempt.json"
