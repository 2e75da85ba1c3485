"""Files that say which states a recorded search expanded, and which are provable."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ebm_encode.data.input_files import expand
from ebm_encode.data.remote import InputFile, open_random
from ebm_encode.errors import InputError
from ebm_encode.heads.records import Record, TrajectoryFile

Known = dict[tuple[str, int], tuple[bool, bool | None]]
"""By theorem and number of a state: whether it was expanded, and whether it is provable."""

_COLUMNS = ("theorem_name", "state_id", "expanded")
_DECIDED: dict[Any, bool] = {"yes": True, "no": False, True: True, False: False}


def with_expansions(files: Sequence[TrajectoryFile], paths: list[str]) -> list[TrajectoryFile]:
    """Trajectories with what files of expansions say of their states.

    Args:
        files: The trajectories.
        paths: Parquet files with `theorem_name`, `state_id`, `expanded` (bool) and, where it was
            decided, `provable` (`yes` or `no`).

    Raises:
        InputError: If a file cannot be read or lacks a column, speaks twice of a state, of none of
            these trajectories' states, or of a number that stands for several of them.
    """
    known = _read(paths)
    _require_clear(files, known, paths)
    return [
        replace(file, records=[_told(record, known) for record in file.records]) for file in files
    ]


def _told(record: Record, known: Known) -> Record:
    said = known.get((record.theorem, record.state_id))
    if said is None or record.finished or not record.state:
        return record
    return replace(record, expanded=record.expanded or said[0], provable=said[1])


def _require_clear(files: Sequence[TrajectoryFile], known: Known, paths: list[str]) -> None:
    texts: dict[tuple[str, int], str] = {}
    for file in files:
        for record in file.records:
            key = record.theorem, record.state_id
            if key not in known or record.finished or not record.state:
                continue
            if texts.setdefault(key, record.state) != record.state:
                raise InputError(
                    f"{', '.join(paths)}: state {record.state_id} of theorem {record.theorem!r}"
                    " stands for several states of the trajectories, and which one is meant is not"
                    " known\nhint: give trajectories and expansions of one recording at a time"
                )
    if not texts:
        raise InputError(f"{', '.join(paths)}: speaks of no state of these trajectories")


def _read(paths: list[str]) -> Known:
    known: Known = {}
    for file in expand(paths).files:
        theorems, numbers, expanded, decided = _columns(file)
        for theorem, number, tried, answer in zip(
            theorems, numbers, expanded, decided, strict=True
        ):
            if (theorem, number) in known:
                raise InputError(f"{file}: speaks twice of state {number} of {theorem!r}")
            known[theorem, number] = bool(tried), _DECIDED.get(answer)
    return known


def _columns(file: InputFile) -> list[list[Any]]:
    try:
        with open_random(file) as source:
            table = pq.read_table(source)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file: {error}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(f"{file}: has no column {', '.join(missing)}: it is no file of expansions")
    kind = table.schema.field("expanded").type
    if not pa.types.is_boolean(kind):
        raise InputError(f"{file}: column 'expanded' is {kind}, expected bool")
    decided = "provable" in table.column_names
    return [
        *(table[name].to_pylist() for name in _COLUMNS),
        table["provable"].to_pylist() if decided else [None] * len(table),
    ]
