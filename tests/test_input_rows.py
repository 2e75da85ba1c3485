"""Rows of input files: bytes of all kinds, kinds of text columns, and rows that hold no text."""

import json
import struct

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode import EmbeddingCache
from ebm_encode.data.trajectories import read_states
from ebm_encode.errors import ArgumentError, InputError

LINE = '{"state_pp": "%s"}'


def jsonl(path, content):
    path.write_bytes(content)
    return str(path)


def not_utf8(*texts):
    """A column of text whose bytes are as given."""
    return pa.array(texts).view(pa.string())


@pytest.mark.parametrize(
    ("content", "states"),
    [
        (b'\xef\xbb\xbf{"state_pp": "a"}\n{"state_pp": "b"}\n', ["a", "b"]),
        (b'{"state_pp": "a"}\n\xef\xbb\xbf{"state_pp": "b"}', ["a", "b"]),
        (b'{"state_pp": "a"}\r\n\r\n{"state_pp": "b"}\r\n', ["a", "b"]),
        ('{"state_pp": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
        (b'{"state_pp": "a\\u0000b"}\n', ["a\0b"]),
        (b'{"state_pp": "\\ud835\\udd38"}\n', ["\U0001d538"]),
        (b'{"state_pp": "a", "other": "state_pp"}\n', ["a"]),
    ],
)
def test_lines_that_are_read(tmp_path, content, states):
    assert read_states([jsonl(tmp_path / "a.jsonl", content)]).texts == states


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ((LINE % "a").encode("utf-16"), "is UTF-16 or UTF-32, expected UTF-8\nhint: .*iconv"),
        ((LINE % "a").encode("utf-16-le"), "is UTF-16 or UTF-32"),
        ((LINE % "a").encode("utf-32-be"), "is UTF-16 or UTF-32"),
        ((LINE % "a\n").encode(), "line 1: not JSON"),
        (
            b'{"state_pp": "a"}\n{"state_pp": "\x93b\x94"}',
            r"line 2: is not UTF-8 \(byte 0x93 at 14",
        ),
        (b'{"state_pp": "a\0b"}\n', "line 1: not JSON: Invalid control character"),
        (b'{"state_pp": "a"}\n{"state_pp": "b", "state_pp": "c"}', "line 2: .* more than once"),
        (b'{"state_pp": "a"}\r{"state_pp": "b"}\r', "line 1: not JSON: Extra data"),
        (b'{"state_pp": "a"}\n{"state_pp":"\\ud835 : Type"}', "line 2: field 'state_pp' has half"),
    ],
)
def test_lines_that_are_refused_by_number(tmp_path, content, reason):
    with pytest.raises(InputError, match=rf"a\.jsonl: {reason}"):
        read_states([jsonl(tmp_path / "a.jsonl", content)])


def test_json_columns_and_categories_are_text(tmp_path):
    states = ["⊢ a", "⊢ b", None, "⊢ a"]
    pq.write_table(pa.table({"state_pp": pa.array(states, pa.json_())}), tmp_path / "json.parquet")
    series = pl.Series("state_pp", states)
    for name, kind in (("enum", pl.Enum(["⊢ a", "⊢ b"])), ("category", pl.Categorical)):
        pl.DataFrame(series.cast(kind)).write_parquet(tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"state_pp": pa.nulls(2)}), tmp_path / "nulls.parquet")
    found = read_states([str(tmp_path)])
    assert found.texts == ["⊢ a", "⊢ b"]
    assert (found.counts.rows, found.counts.null) == (14, 5)


def test_a_column_that_is_there_twice_is_refused_as_such(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["state_pp", "state_pp"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"has 2 columns named 'state_pp'.*\nhint: rename one"):
        read_states([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_is_reported_by_row(tmp_path, kind):
    texts = pa.chunked_array([not_utf8(b"a", b"b"), not_utf8(b"c", b"\xff\xfe")]).cast(kind)
    pq.write_table(pa.table({"state_pp": texts}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(InputError, match=r"a\.parquet: row 3: is not UTF-8 \(byte 0xff\)") as told:
        read_states([str(tmp_path / "a.parquet")])
    assert "readable" not in str(told.value)


@pytest.fixture
def mixed(tmp_path):
    """Files with states of which some are not text."""
    jsonl(
        tmp_path / "a.jsonl",
        b'{"state_pp": "\xe2\x8a\xa2 a"}\n{"state_pp": "\\ud835 : Type"}\nnot json\n{"x": 1}\n'
        b'{"state_pp": 1}\n{"state_pp": "\xff"}\n{"state_pp": null}\n',
    )
    pq.write_table(
        pa.table({"state_pp": not_utf8("⊢ b".encode(), b"\xff", "⊢ c".encode())}),
        tmp_path / "b.parquet",
    )
    return tmp_path


def test_invalid_rows_are_skipped_counted_and_listed(mixed, run_cli, llama):
    output = mixed / "o.parquet"
    arguments = (
        *("encode", "--model-path", llama, "--output", output, "--json"),
        *("--trajectories", mixed / "a.jsonl", mixed / "b.parquet"),
    )
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert "line 2: field 'state_pp' has half" in err
    assert not output.exists()
    code, out, err = run_cli(*arguments, "--invalid-rows", "skip")
    assert code == 0
    counts = json.loads(out)["input"]
    assert (counts["rows"], counts["unique"], counts["null"], counts["invalid"]) == (10, 3, 1, 6)
    assert set(EmbeddingCache.open(output).states()) == {"⊢ a", "⊢ b", "⊢ c"}
    listed = (mixed / "o.parquet.invalid.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in listed]
    assert [(record["file"][-9:], record["row"]) for record in records] == [
        *[(str(mixed / "a.jsonl")[-9:], f"line {number}") for number in (2, 3, 4, 5, 6)],
        (str(mixed / "b.parquet")[-9:], "row 1"),
    ]
    assert all(record["reason"] for record in records)
    assert "line 2: field 'state_pp' has half" in err
    assert "3 more invalid rows are skipped" in err
    assert read_states([str(mixed)], invalid_rows="skip").counts.rows == 10, "the list is no input"


def test_a_list_of_invalid_rows_goes_with_them(mixed, run_cli, llama):
    output, source = mixed / "o.parquet", mixed / "a.jsonl"
    arguments = ("encode", "--model-path", llama, "--output", output, "--quiet", "--trajectories")
    assert run_cli(*arguments, source, "--invalid-rows", "skip")[0] == 0
    assert (mixed / "o.parquet.invalid.jsonl").exists()
    source.write_text(LINE % "⊢ a")
    assert run_cli(*arguments, source)[0] == 0
    assert not (mixed / "o.parquet.invalid.jsonl").exists()


def test_a_file_of_which_all_is_invalid_is_a_wrong_file(tmp_path):
    """Rather than so many wrong rows."""
    jsonl(tmp_path / "a.jsonl", b'{"state": "a"}\n{"state": "b"}\n')
    jsonl(tmp_path / "b.jsonl", (LINE % "b").encode())
    with pytest.raises(InputError, match=r"a\.jsonl: has no valid row; line 1: has no field"):
        read_states([str(tmp_path)], invalid_rows="skip")
    with pytest.raises(ArgumentError, match="`invalid_rows` 'drop': expected error or skip"):
        read_states([str(tmp_path)], invalid_rows="drop")


def test_a_damaged_page_is_not_taken_for_invalid_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"state_pp": [f"state {i}" for i in range(500)]}), path,
        compression="none", use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<I", 9) + b"state 300")
    content[at : at + 4] = b"\xff\xff\xff\x7f"  # the length of the text
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable Parquet file, or cut off"):
        read_states([str(path)], invalid_rows="skip")
