"""Input files to unique states.

Knows nothing of models. Streams Parquet row groups and JSON lines; keeps only the distinct texts.
"""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.parquet as pq

from ebm_encode import _core
from ebm_encode.digests import digest_file
from ebm_encode.errors import InputError
from ebm_encode.objects import ObjectFile, expand_url
from ebm_encode.side_files import OVERLONG, QUARANTINE

InputFile = Path | ObjectFile

DEFAULT_COLUMN = "state_pp"
_COMPLETE_COLUMN = "is_proof_complete"
_SUFFIXES = {".parquet", ".jsonl", ".ndjson"}


@dataclass
class InputCounts:
    """Rows read, and what became of them. `rows` is the sum of all the others."""

    rows: int = 0
    unique: int = 0
    repeated: int = 0
    null: int = 0
    empty: int = 0
    proof_complete: int = 0


@dataclass
class States:
    """The distinct states of some files, in the order of their first appearance."""

    texts: list[str]
    files: dict[InputFile, str]  # each with the digest of its content
    counts: InputCounts
    notes: list[str] = field(default_factory=list)


def read_states(paths: list[str], column: str = DEFAULT_COLUMN) -> States:
    """Reads the distinct, non-empty states of files, folders and globs.

    Args:
        paths: Parquet or JSON-lines files, folders of them, or glob patterns; also as URLs.
        column: The column or field that holds the text.

    Raises:
        InputError: Naming the file and column, if a file is missing, damaged, has no such column
            or another type there, or if there is no state at all.
    """
    files, notes = expand(paths)
    seen: dict[str, None] = {}
    counts = InputCounts()
    digests = {}
    for file in files:
        reader = _read_parquet if file.suffix == ".parquet" else _read_json_lines
        before = counts.rows
        with _unchanging(file):
            for text, complete in reader(file, column):
                _count(text, complete=complete, seen=seen, counts=counts)
            digests[file] = file.digest() if isinstance(file, ObjectFile) else digest_file(file)
        if counts.rows == before:
            raise InputError(f"{file}: has no rows")
    if not seen:
        raise InputError(f"{', '.join(map(str, files))}: column {column!r} holds no state")
    return States(list(seen), digests, counts, notes)


@contextmanager
def _unchanging(file: InputFile) -> Iterator[None]:
    """Refuses a file that changes while it is read: its digest would be of something else."""
    try:
        before = file.stat()
        yield
        after = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"{file}: changed while it was read")


def expand(paths: list[str]) -> tuple[list[InputFile], list[str]]:
    """The input files that paths, folders and globs stand for, each once; and remarks.

    A file that is named twice, through a link or in another spelling, is one file.

    Raises:
        InputError: If one stands for nothing, or a file has an unknown ending.
    """
    files: dict[InputFile | str, InputFile] = {}
    notes: list[str] = []
    if not paths or not all(paths):
        raise InputError("--trajectories: name at least one file, folder or pattern")
    for text in paths:
        try:
            found = _stands_for(text, notes)
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise InputError(f"{text[:80]}: cannot be read: {error}") from error
        if not found:
            raise InputError(f"{text}: no such file, or a folder without .parquet or .jsonl files")
        for file in found:
            if file.suffix not in _SUFFIXES:
                raise InputError(f"{file}: expected a file ending in .parquet, .jsonl or .ndjson")
            files.setdefault(os.path.realpath(file) if isinstance(file, Path) else file, file)
    return list(files.values()), notes


def _stands_for(text: str, notes: list[str]) -> list[InputFile]:
    if _core.is_remote(text):
        found = expand_url(text)
        one = [file.url for file in found] == [text]
        return list(found) if one else _inputs(found, notes)
    path = Path(url2pathname(urlsplit(text).path) if text.startswith("file://") else text)
    if path.is_dir():
        return _inputs(sorted(path.iterdir()), notes)
    if path.exists():
        return [path]
    return [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207


def _inputs(files: Sequence[InputFile], notes: list[str]) -> list[InputFile]:
    """Those of a folder's files that are inputs, without what earlier runs left there."""
    found = []
    for file in files:
        if file.suffix == ".parquet" and _is_cache(file):
            notes.append(f"{file}: left out, it is an embedding cache, not a trajectory")
        elif file.suffix in _SUFFIXES and not file.name.endswith((OVERLONG, QUARANTINE)):
            found.append(file)
    return found


def _count(text: str | None, *, complete: bool, seen: dict[str, None], counts: InputCounts) -> None:
    counts.rows += 1
    if complete:
        counts.proof_complete += 1
    elif text is None:
        counts.null += 1
    elif not text:
        counts.empty += 1
    elif text in seen:
        counts.repeated += 1
    else:
        seen[text] = None
        counts.unique += 1


def _is_cache(file: InputFile) -> bool:
    try:
        with file.open("rb") as source:
            metadata = pq.read_metadata(source).metadata or {}
    except (pa.ArrowException, OSError):
        return False  # reading it as an input will say what is wrong with it
    return _core.METADATA_KEY.encode() in metadata


def _read_parquet(file: InputFile, column: str) -> Iterator[tuple[str | None, bool]]:
    try:
        # Opened here: Arrow takes no name that is not text.
        with file.open("rb") as source, pq.ParquetFile(source) as parquet:
            schema = parquet.schema_arrow
            _require_text(file, column, schema)
            has_complete = (
                _COMPLETE_COLUMN in schema.names
                and schema.field(_COMPLETE_COLUMN).type == pa.bool_()
            )
            columns = [column, _COMPLETE_COLUMN] if has_complete else [column]
            for batch in parquet.iter_batches(columns=columns):
                texts = batch.column(column).cast(pa.large_string()).to_pylist()
                if has_complete:
                    complete = batch.column(_COMPLETE_COLUMN).to_pylist()
                    yield from zip(texts, (bool(value) for value in complete), strict=True)
                else:
                    yield from ((text, False) for text in texts)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{file}: column {column!r}: not a readable Parquet file, or cut off: {reason}"
        ) from error


def _require_text(file: InputFile, column: str, schema: pa.Schema) -> None:
    if schema.names.count(column) != 1:
        names = ", ".join(schema.names)
        raise InputError(
            f"{file}: has no column {column!r}; it has {names}. Name one with --column"
        )
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        raise InputError(f"{file}: column {column!r} is {kind}, expected text")


def _read_json_lines(file: InputFile, column: str) -> Iterator[tuple[str | None, bool]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_line(file, number, line, column)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _parse_line(file: InputFile, number: int, line: bytes, column: str) -> tuple[str | None, bool]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8, or nested too deep
        raise InputError(f"{file}: line {number}: not JSON: {error}") from error
    if not isinstance(record, dict) or column not in record:
        raise InputError(f"{file}: line {number}: has no field {column!r}. Name one with --column")
    text = record[column]
    if text is None:
        return None, False
    if not isinstance(text, str):
        found = type(text).__name__
        raise InputError(f"{file}: line {number}: field {column!r} is {found}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{file}: line {number}: field {column!r}: {error}") from error
    return text, record.get(_COMPLETE_COLUMN) is True
