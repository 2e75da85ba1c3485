"""The texts of JSON lines: one object a line, UTF-8."""

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any

from ebm_encode.data.remote import InputFile, open_stream
from ebm_encode.errors import InputError
from ebm_encode.texts import why_not_text

Row = tuple[str | None, bool]
"""A text, if there is one, and whether the row is of a finished proof."""

Invalid = Callable[[str, str], None]
"""Gets the place of a row in its file, and why it holds no text. May raise."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_json_lines(file: InputFile, column: str, flag: str, invalid: Invalid) -> Iterator[Row]:
    """The rows of a file, in their order; blank lines are none.

    A byte order mark at the start of a line and Windows line ends mean nothing.

    Args:
        file: The file.
        column: The field with the text.
        flag: The field that is `true` for a finished proof.
        invalid: Told of lines that are not JSON, or lack the field, or have no text there.

    Raises:
        InputError: If the file cannot be read, or is UTF-16.
    """
    try:
        with open_stream(file) as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and (line.startswith(_UTF_16) or b"\0" in line[:4]):
                    raise InputError(
                        f"{file}: is UTF-16 or UTF-32, expected UTF-8\n"
                        "hint: convert it, for example with `iconv -f UTF-16 -t UTF-8`"
                    )
                line = line.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901
                if not line.strip():
                    continue
                try:
                    row = _row(line, column, flag)
                except _InvalidLineError as error:
                    invalid(f"line {number}", str(error))
                else:
                    yield row
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


class _InvalidLineError(Exception):
    """Says why a line holds no text."""


def _row(line: bytes, column: str, flag: str) -> Row:
    record = _record(line, column)
    if not isinstance(record, dict) or column not in record:
        raise _InvalidLineError(
            f"has no field {column!r}\nhint: choose another field with `column`"
        )
    text = record[column]
    if text is None:
        return None, False
    if reason := why_not_text(text):
        raise _InvalidLineError(f"field {column!r} {reason}")
    return text, record.get(flag) is True


def _record(line: bytes, column: str) -> Any:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _InvalidLineError(
            f"is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start})\n"
            "hint: convert the file, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    try:
        # Of a field that comes twice Python would take the last one without a word.
        if line.count(json.dumps(column, ensure_ascii=False).encode()) > 1:
            return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, column))
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, or nested too deep
        raise _InvalidLineError(f"not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]], column: str) -> dict[str, Any]:
    if sum(name == column for name, _ in pairs) > 1:
        raise _InvalidLineError(f"has field {column!r} more than once")
    return dict(pairs)
