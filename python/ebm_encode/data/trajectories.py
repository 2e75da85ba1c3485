"""Input files to unique states.

Knows nothing of models. Streams Parquet row groups and JSON lines; keeps only the distinct texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ebm_encode.data.input_files import expand
from ebm_encode.data.json_lines import Row, read_json_lines
from ebm_encode.data.parquet_texts import read_parquet
from ebm_encode.data.remote import InputFile, RemoteFile, open_stream
from ebm_encode.digests import digest_file, digest_stream
from ebm_encode.errors import ArgumentError, InputError
from ebm_encode.options import DEFAULT_COLUMN, InvalidRows, require
from ebm_encode.state_formats import AS_GIVEN, Conversion, convert, format_name, refusal

_COMPLETE_COLUMN = "is_proof_complete"


@dataclass
class InputCounts:
    """Rows read, and what became of them. `rows` is the sum of all the others."""

    rows: int = 0
    unique: int = 0
    repeated: int = 0
    null: int = 0
    empty: int = 0
    proof_complete: int = 0
    invalid: int = 0


@dataclass
class States:
    """The distinct states of some files, in the order of their first appearance.

    Attributes:
        texts: The states.
        files: The files, each with the digest of its content.
        counts: What the rows of the files held.
        notes: Files below folders that were skipped, and why.
        warnings: Files that were skipped though they look like inputs.
        invalid: The rows that hold no text, where these are skipped: `file`, `row`, `reason`; and
            states that cannot be converted: `state`, `reason`.
        conversion: What became of the states when they were converted; `None` if they were not.
    """

    texts: list[str]
    files: dict[InputFile, str]
    counts: InputCounts
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    invalid: list[dict[str, Any]] = field(default_factory=list)
    conversion: Conversion | None = None


def read_states(
    paths: list[str],
    column: str = DEFAULT_COLUMN,
    *,
    invalid_rows: InvalidRows = "error",
) -> States:
    """Reads the distinct, non-empty states of files, folders and globs.

    Args:
        paths: Parquet or JSON-lines files, folders of them (subfolders are read, too), or glob
            patterns; also as URLs.
        column: The column or field that holds the text.
        invalid_rows: What to do about rows that hold no text (a line that is not JSON or has no
            such field; text that is not UTF-8, or has half of a surrogate pair): `error`, or `skip`
            them, counted and listed.

    Raises:
        ArgumentError: If an argument has no meaning.
        InputError: With file and column, if a file is missing, damaged, has no such column
            or another type there, or no valid row, or if there is no state at all.
    """
    require("`invalid_rows`", invalid_rows, InvalidRows)
    inputs = expand(paths)
    reading = _Reading(column, skip=invalid_rows == "skip")
    digests = {}
    for file in inputs.files:
        with _unchanging(file):
            reading.take(file)
            digests[file] = _digest(file)
    if not reading.seen:
        some = ", ".join([str(file) for file in inputs.files][:3])
        more = f" and {len(inputs.files) - 3} more" if len(inputs.files) > 3 else ""  # noqa: PLR2004
        raise InputError(f"{some}{more}: column {column!r} holds no state")
    return States(
        list(reading.seen),
        digests,
        reading.counts,
        [*inputs.notes],
        [*inputs.warnings],
        reading.invalid,
    )


def convert_input(
    states: States,
    state_format: str,
    states_in: str | None = None,
    *,
    invalid_rows: InvalidRows = "error",
) -> None:
    """Converts the states of an input to a printed form; distinct are the converted ones.

    Args:
        states: The states; those of `as-given` stay as they are.
        state_format: The wanted form.
        states_in: The form that they are in; by default what the texts show, where it makes no
            difference what they do not show.
        invalid_rows: What to do about states that cannot be converted: `error`, or `skip` them,
            counted and listed.

    Raises:
        ArgumentError: If a form is given from which nothing is to be converted.
        StateFormatError: If states cannot be converted, or the form that they are in must be said.
        InputError: If none can be converted.
    """
    if format_name(state_format) == AS_GIVEN:
        if states_in is not None:
            raise ArgumentError("`states_in` has no meaning without `state_format`")
        return
    done = convert(states.texts, state_format, states_in)
    if done.refused and invalid_rows == "error":
        failures = [(record["state"], record["reason"]) for record in done.refused]
        hint = '\nhint: have such states skipped and listed: `invalid_rows="skip"`'
        raise refusal(failures, len(states.texts), state_format, hint)
    if not done.texts:
        raise InputError(f"no state can be converted to {done.target}: {done.refused[0]['reason']}")
    states.texts, states.conversion = done.texts, done
    states.invalid.extend(done.refused)


_SKIP = '\nhint: mend the row, or have such rows skipped and listed: `invalid_rows="skip"`'


class _Reading:
    """The states of the files read so far.

    Args:
        column: The column or field that holds the text.
        skip: Whether rows without text are listed, rather than refused.
    """

    def __init__(self, column: str, *, skip: bool) -> None:
        self.seen: dict[str, None] = {}
        self.counts = InputCounts()
        self.invalid: list[dict[str, Any]] = []
        self._column = column
        self._skip = skip

    def take(self, file: InputFile) -> None:
        """Reads a file.

        Raises:
            InputError: If it cannot be read, or has no rows, or none that is valid.
        """
        before, known = self.counts.rows, len(self.invalid)

        def invalid(place: str, reason: str) -> None:
            if not self._skip:
                way_out = "" if "\nhint: " in reason else _SKIP
                raise InputError(f"{file}: {place}: {reason}{way_out}")
            self.counts.rows += 1
            self.counts.invalid += 1
            record = {"file": str(file), "row": place, "reason": reason.partition("\n")[0]}
            self.invalid.append(record)

        reader = read_parquet if file.suffix == ".parquet" else read_json_lines
        for row in reader(file, self._column, _COMPLETE_COLUMN, invalid):
            self._count(row)
        rows = self.counts.rows - before
        if rows == 0:
            raise InputError(f"{file}: has no rows")
        if rows == len(self.invalid) - known:  # rather a wrong file than wrong rows
            first = self.invalid[known]
            raise InputError(f"{file}: has no valid row; {first['row']}: {first['reason']}")

    def _count(self, row: Row) -> None:
        text, complete = row
        self.counts.rows += 1
        if complete:
            self.counts.proof_complete += 1
        elif text is None:
            self.counts.null += 1
        elif not text:
            self.counts.empty += 1
        elif text in self.seen:
            self.counts.repeated += 1
        else:
            self.seen[text] = None
            self.counts.unique += 1


def _digest(file: InputFile) -> str:
    if not isinstance(file, RemoteFile):
        return digest_file(file)
    with open_stream(file) as source:
        return digest_stream(source)


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
