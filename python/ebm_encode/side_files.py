"""The lists that a run leaves beside its output: quarantined and overlong states, as JSON lines."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ebm_encode.errors import CacheIOError

QUARANTINE = ".quarantine.jsonl"
OVERLONG = ".overlong.jsonl"


def side_file(output: Path, ending: str) -> Path:
    """Where the list of an output stands."""
    return output.with_name(output.name + ending)


def write_list(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a list in one atomic step; an empty one removes what an earlier run left.

    Raises:
        CacheIOError: If the file cannot be written.
    """
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    temporary = path.with_name(path.name + ".tmp")
    try:
        if not lines:
            path.unlink(missing_ok=True)
            return
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheIOError(f"{path}: cannot write: {error.strerror}") from error


class Journal:
    """Records that must outlive a crash, each state's once; kept until the run is finished.

    Args:
        path: The file; what an earlier run wrote there is taken up.
    """

    def __init__(self, path: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self._path = path
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                    self.records[record["state"]] = record
                except (ValueError, KeyError, TypeError):
                    continue  # the last line, cut off by a crash; its state was not saved either

    def add(self, records: list[dict[str, Any]]) -> None:
        """Appends records; they are on the disk when this returns.

        Raises:
            CacheIOError: If the file cannot be written.
        """
        new = [record for record in records if record["state"] not in self.records]
        if not new:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CacheIOError(f"{self._path}: cannot write: {error.strerror}") from error
        self.records.update({record["state"]: record for record in new})
