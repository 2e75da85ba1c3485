"""The lists that a run leaves beside its output, as JSON lines.

They hold quarantined states, overlong states, input rows that hold no text, and what the epochs of
a head's training measured.
"""

import json
from collections.abc import Iterable
from typing import Any

from ebm_encode import _core

QUARANTINE = ".quarantine.jsonl"
OVERLONG = ".overlong.jsonl"
INVALID = ".invalid.jsonl"
EPOCHS = ".log.jsonl"
SIDE_FILES = (QUARANTINE, OVERLONG, INVALID, EPOCHS)


def side_file(output: str, ending: str) -> str:
    """Where the list of an output stands."""
    return output.rstrip("/") + ending


def write_list(path: str, records: Iterable[dict[str, Any]]) -> None:
    """Writes a list in one atomic step; an empty one removes what an earlier run left.

    Raises:
        CacheIOError: If the file cannot be written.
    """
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    if lines:
        _core.write_file(path, "".join(lines).encode())
    else:
        _core.remove_file(path)


def read_list(path: str) -> dict[str, dict[str, Any]]:
    """The records of a list by state; none where there is no list."""
    records = {}
    for line in (_core.read_file(path) or b"").split(b"\n"):
        try:
            record = json.loads(line)
            records[record["state"]] = record
        except (ValueError, KeyError, TypeError):
            continue  # not one of our lines
    return records


class Journal:
    """Records that must outlive a crash, each state's once; kept until the run is finished.

    Each addition is a new file: files in an object store cannot grow.

    Args:
        folder: The folder of the files; what an earlier run wrote there is taken up.
    """

    def __init__(self, folder: str) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self._folder = folder
        self._files = 0
        if _core.path_kind(folder) == "folder":
            for file in _core.list_files(folder, "jsonl"):
                self.records |= read_list(file)
                self._files += 1

    def add(self, records: list[dict[str, Any]], *, replace: bool = False) -> None:
        """Adds records; they are on the disk when this returns.

        Args:
            records: The records.
            replace: Whether they take the place of earlier ones of the same states.

        Raises:
            CacheIOError: If they cannot be written.
        """
        known = {} if replace else self.records
        new = [record for record in records if record["state"] not in known]
        if not new:
            return
        write_list(f"{self._folder}/overlong-{self._files:09}.jsonl", new)
        self._files += 1
        self.records.update({record["state"]: record for record in new})
