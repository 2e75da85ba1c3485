"""The texts of a column of a Parquet file, whatever kind of text the column is."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ebm_encode.data.json_lines import Invalid, Row
from ebm_encode.data.remote import InputFile, open_random
from ebm_encode.errors import InputError


def read_parquet(file: InputFile, column: str, flag: str, invalid: Invalid) -> Iterator[Row]:
    """The rows of a file, in their order.

    Args:
        file: The file.
        column: The column with the texts: any kind of text, dictionaries and JSON included.
        flag: The column of booleans that are true for finished proofs.
        invalid: Told of texts that are not UTF-8.

    Raises:
        InputError: If it is no Parquet file, or damaged, or has no such column of text.
    """
    try:
        # Opened here: Arrow takes no name that is not text.
        with open_random(file) as source, pq.ParquetFile(source) as parquet:
            schema = parquet.schema_arrow
            _require_text(file, column, schema)
            columns = [column]
            if schema.names.count(flag) == 1 and schema.field(flag).type == pa.bool_():
                columns.append(flag)
            first = 0
            for batch in parquet.iter_batches(columns=columns):
                texts = _texts(batch.column(column), first, invalid)
                done = batch.column(flag).to_pylist() if len(columns) > 1 else [False] * len(batch)
                for text, complete in zip(texts, done, strict=True):
                    if not isinstance(text, _Told):
                        yield text, bool(complete)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{file}: column {column!r}: not a readable Parquet file, or cut off: {reason}"
        ) from error


class _Told:
    """Stands for a text that was found invalid."""


_TOLD = _Told()


def _texts(values: Any, first: int, invalid: Invalid) -> list[str | _Told | None]:
    """The texts of some rows, of which the first has this number."""
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    plain = values.cast(pa.large_string())
    try:
        texts: list[Any] = plain.to_pylist()
    except UnicodeDecodeError:
        return [_text(text, first + i, invalid) for i, text in enumerate(_bytes(plain))]
    return texts


def _bytes(texts: Any) -> list[bytes | None]:
    found: list[bytes | None] = texts.view(pa.large_binary()).to_pylist()
    return found


def _text(content: bytes | None, number: int, invalid: Invalid) -> str | _Told | None:
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        invalid(f"row {number}", f"is not UTF-8 (byte 0x{content[error.start]:02x})")
        return _TOLD


def _require_text(file: InputFile, column: str, schema: pa.Schema) -> None:
    count = schema.names.count(column)
    if count == 0:
        raise InputError(
            f"{file}: has no column {column!r}; it has {', '.join(schema.names)}\n"
            "hint: choose one with `column`"
        )
    if count > 1:
        raise InputError(
            f"{file}: has {count} columns named {column!r}, and which one holds the states is not"
            " known\nhint: rename one, or choose another with `column`"
        )
    kind = schema.field(column).type
    if not _is_text(kind):
        raise InputError(f"{file}: column {column!r} is {kind}, expected text")


def _is_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)  # a column without a value
    )
