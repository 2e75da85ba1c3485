"""Rows of trajectory files: the steps of recorded searches."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ebm_encode.data.input_files import expand
from ebm_encode.data.remote import InputFile, open_random, open_stream
from ebm_encode.digests import digest_stream
from ebm_encode.errors import InputError

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_REQUIRED: dict[str, pa.DataType] = {
    "theorem_name": _TEXT,
    "state_id": _WHOLE,
    "state_pp": _TEXT,
    "parent_state_id": _WHOLE,
}
# What a file may lack, with the value that then stands for "not known".
_OPTIONAL: dict[str, tuple[pa.DataType, Any]] = {
    "tactic_applied": (_TEXT, ""),
    "label": (_TEXT, "unknown"),
    "remaining_depth": (_WHOLE, -1),
    "llm_log_prob": (_REAL, None),
    "is_proof_complete": (_FLAG, False),
    "visits": (_WHOLE, 0),
}


@dataclass(frozen=True)
class Record:
    """One row: a state, and the step that led to it.

    Attributes:
        theorem: Name of the theorem.
        state_id: Number of the state, unique within one search.
        state: The state's text; empty for a finished proof.
        parent_id: Number of the state that the tactic was applied to; `None` for a root.
        tactic: The tactic.
        label: The file's own label: `positive`, `negative` or `unknown`.
        remaining: The file's own number of steps to the end of the proof, or -1.
        log_prob: Log-probability of this step under the policy that proposed it.
        finished: Whether no goal remains.
        expanded: Whether the record says that the state was expanded: `visits` above zero, or so
            in a file of expansions.
        provable: Whether the state is known to be provable, or known not to be, by a decision
            procedure that a file of expansions reports.
    """

    theorem: str
    state_id: int
    state: str
    parent_id: int | None
    tactic: str
    label: str
    remaining: int
    log_prob: float
    finished: bool
    expanded: bool
    provable: bool | None = None


@dataclass(frozen=True)
class TrajectoryFile:
    """The rows of one file.

    Attributes:
        name: Absolute path, or URL.
        digest: BLAKE3 of its bytes, hex.
        records: Its rows, in order.
        has_policy: Whether its steps have log-probabilities.
    """

    name: str
    digest: str
    records: list[Record]
    has_policy: bool = True


def read_trajectories(paths: list[str]) -> list[TrajectoryFile]:
    """Reads searches from Parquet or JSON-lines files, folders of them, or glob patterns.

    Raises:
        InputError: With file and column, row or line, if a file is missing, damaged, empty, or
            lacks what a search needs: `theorem_name`, `state_id`, `state_pp` and
            `parent_state_id`; or if some steps have a log-probability and others have none.
    """
    found = []
    for file in expand(paths).files:
        read = _read_parquet if file.suffix == ".parquet" else _read_json_lines
        records = list(read(file))
        if not records:
            raise InputError(f"{file}: has no rows")
        with open_stream(file) as source:
            digest = digest_stream(source)
        name = str(file.absolute() if isinstance(file, Path) else file)
        found.append(TrajectoryFile(name, digest, *_with_policy(file, records)))
    return found


def _with_policy(file: InputFile, records: list[Record]) -> tuple[list[Record], bool]:
    """The records, and whether their steps have log-probabilities."""
    steps = [record for record in records if record.parent_id is not None]
    without = sum(isnan(record.log_prob) for record in steps)
    if 0 < without < len(steps):
        raise InputError(
            f"{file}: llm_log_prob is null in {without:,} of {len(steps):,} steps\n"
            "hint: give all steps one, or drop the column; a missing one is not probability 1"
        )
    told = [replace(r, log_prob=0.0) if isnan(r.log_prob) else r for r in records]
    return told, bool(steps) and not without


def _read_parquet(file: InputFile) -> Iterator[Record]:
    try:
        with open_random(file) as source, pq.ParquetFile(source) as parquet:
            names = parquet.schema_arrow.names
            _require(file, names)
            wanted = [name for name in (*_REQUIRED, *_OPTIONAL) if name in names]
            first = 0
            for batch in parquet.iter_batches(columns=wanted):
                yield from _records(file, batch, first)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: not a readable Parquet file, or cut off: {reason}") from error


def _require(file: InputFile, names: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise InputError(
            f"{file}: has no column {', '.join(missing)}; it has {', '.join(names)}\n"
            "hint: a search needs theorem_name, state_id, state_pp and parent_state_id"
        )


def _records(
    file: InputFile, batch: pa.RecordBatch, first: int, place: str = "row"
) -> Iterator[Record]:
    columns = [
        *(_column(file, batch, name, kind) for name, kind in _REQUIRED.items()),
        *(_column(file, batch, name, kind, missing) for name, (kind, missing) in _OPTIONAL.items()),
    ]
    for number, row in enumerate(zip(*columns, strict=True)):
        yield _record(f"{file}: {place} {first + number}", *row)


def _column(
    file: InputFile, batch: pa.RecordBatch, name: str, kind: pa.DataType, missing: Any = None
) -> list[Any]:
    if name not in batch.schema.names:
        return [missing] * len(batch)
    values = batch.column(name)
    try:
        column = pc.cast(values, kind)
    except pa.ArrowException as error:
        raise InputError(f"{file}: column {name!r} is {values.type}, expected {kind}") from error
    filled: Any = column if missing is None else pc.fill_null(column, missing)
    found: list[Any] = filled.to_pylist()
    return found


def _record(  # noqa: PLR0917  (the order of the columns)
    where: str,
    theorem: str | None,
    state_id: int | None,
    state: str | None,
    parent_id: int | None,
    tactic: str,
    label: str,
    remaining: int,
    log_prob: float | None,
    finished: bool,  # noqa: FBT001
    visits: int,
) -> Record:
    if theorem is None or state_id is None:
        missing = "theorem_name" if theorem is None else "state_id"
        raise InputError(f"{where}: {missing} is null")
    if log_prob is not None and not isfinite(log_prob):
        raise InputError(f"{where}: llm_log_prob is {log_prob}, expected a finite number")
    return Record(
        theorem,
        state_id,
        state or "",
        parent_id,
        tactic,
        label,
        remaining,
        nan if log_prob is None else log_prob,
        finished,
        visits > 0,
    )


_LINES = pa.schema([*_REQUIRED.items(), *((name, kind) for name, (kind, _) in _OPTIONAL.items())])


def _read_json_lines(file: InputFile) -> Iterator[Record]:
    with open_stream(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{file}: line {number}: not JSON: {error}") from error
            if not isinstance(row, dict) or any(name not in row for name in _REQUIRED):
                raise InputError(
                    f"{file}: line {number}: not an object with {', '.join(_REQUIRED)}"
                )
            for name in ("state_id", "parent_state_id"):
                if not isinstance(row[name], int | None) or isinstance(row[name], bool):
                    raise InputError(f"{file}: line {number}: {name} is no whole number")
            values = {
                **{name: row[name] for name in _REQUIRED},
                **{name: row.get(name, missing) for name, (_, missing) in _OPTIONAL.items()},
            }
            try:
                batch = pa.RecordBatch.from_pylist([values], schema=_LINES)
            except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
                raise InputError(f"{file}: line {number}: {error}") from error
            yield from _records(file, batch, number, "line")
