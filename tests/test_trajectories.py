"""What is read from input files, and what is refused, with the file and column reported."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebm_encode.data.trajectories import read_states
from ebm_encode.errors import InputError
from support import SAMPLES


def write(path, states, **columns):
    pq.write_table(pa.table({"state_pp": states, **columns}), path)
    return str(path)


def test_the_samples_are_read_as_pyarrow_reads_them():
    files = sorted(SAMPLES.glob("*.parquet"))
    expected = dict.fromkeys(
        state
        for file in files
        for row in pq.read_table(file).to_pylist()
        if (state := row["state_pp"]) and not row["is_proof_complete"]
    )
    found = read_states([str(file) for file in files])
    assert found.texts == list(expected)
    counts = vars(found.counts)
    assert counts["rows"] == sum(pq.read_metadata(file).num_rows for file in files)
    assert counts["rows"] == sum(value for name, value in counts.items() if name != "rows")


def test_states_are_distinct_and_in_order_and_never_changed(tmp_path):
    file = write(tmp_path / "a.parquet", ["b", " b", "a", None, "", "b", "é", "e\u0301", "a\n"])
    found = read_states([file])
    assert found.texts == ["b", " b", "a", "é", "e\u0301", "a\n"]
    assert (found.counts.null, found.counts.empty, found.counts.repeated) == (1, 1, 1)


def test_finished_proofs_are_counted_and_skipped(tmp_path):
    file = write(tmp_path / "a.parquet", ["a", "", "b"], is_proof_complete=[False, True, True])
    found = read_states([file])
    assert found.texts == ["a"]
    assert found.counts.proof_complete == 2


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_any_kind_of_text_column_will_do(tmp_path, kind):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"state_pp": pa.array(["a", "b"]).cast(kind)}), file)
    assert read_states([str(file)]).texts == ["a", "b"]


def test_json_lines_folders_and_globs(tmp_path, write_cache, rows):
    write(tmp_path / "a.parquet", ["a", "b"])
    lines = [{"state_pp": "b"}, {"state_pp": "c"}, {"state_pp": None}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "c.parquet.quarantine.jsonl").write_text('{"state": "z"}\n')
    (tmp_path / "notes.txt").write_text("x")
    write_cache(tmp_path / "c.parquet", ["z"], rows(1))
    folder = read_states([str(tmp_path)])
    assert folder.texts == ["a", "b", "c"]
    assert any("c.parquet" in note for note in folder.notes)
    assert read_states([f"{tmp_path}/[ab].*"]).texts == ["a", "b", "c"]
    assert read_states([f"{tmp_path}/a.parquet"] * 2).counts.rows == 2
    assert read_states([f"{tmp_path}/c.parquet"]).texts == ["z"], (
        "given by its own path, it is read"
    )


def test_another_column_may_hold_the_states(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "state_pp": [1]}), file)
    assert read_states([str(file)], "text").texts == ["a"]


def parquet(path, table):
    pq.write_table(table, path)


def cut(path):
    write(path, ["a"] * 1000)
    path.write_bytes(path.read_bytes()[:-200])


REFUSED = {
    "missing": (lambda _: None, "no such file"),
    "empty file": (lambda path: path.write_bytes(b""), "not a readable Parquet file"),
    "not parquet": (lambda path: path.write_text("hello"), "not a readable Parquet file"),
    "cut off": (cut, "not a readable Parquet file"),
    "wrong column": (lambda path: parquet(path, pa.table({"x": ["a"]})), "no column 'state_pp'"),
    "wrong type": (lambda path: parquet(path, pa.table({"state_pp": [1]})), "int64, expected text"),
    "no rows": (
        lambda path: parquet(path, pa.table({"state_pp": pa.array([], pa.string())})),
        "has no rows",
    ),
    "only empty": (lambda path: write(path, ["", None]), "holds no state"),
    "a folder": (lambda path: path.mkdir(), "without .parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line_and_a_hint(tmp_path, name, run_cli):
    make, expected = REFUSED[name]
    file = tmp_path / "input.parquet"
    make(file)
    with pytest.raises(InputError, match=r"input\.parquet") as refused:
        read_states([str(file)])
    message = str(refused.value)
    assert expected in message
    assert all(line.startswith("hint: ") for line in message.splitlines()[1:])
    # And so before a model is looked for.
    output = tmp_path / "out.parquet"
    code, _, err = run_cli(
        "encode", "--model-path", "/none", "--trajectories", file, "--output", output
    )
    assert code == 2
    assert expected in " ".join(err.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: has no field 'state_pp'"),
        ('{"x": 1}', "line 2: has no field 'state_pp'"),
        ('{"state_pp": 1}', "int, expected text"),
        ('{"state_pp": "\\ud800"}', "half of a surrogate pair (U+D800"),
    ],
)
def test_bad_json_lines_are_refused_by_number(tmp_path, line, expected):
    file = tmp_path / "a.jsonl"
    file.write_text('{"state_pp": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl") as refused:
        read_states([str(file)])
    assert expected in str(refused.value)


def test_unknown_endings_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("state_pp\na\n")
    with pytest.raises(InputError, match="expected a file ending in"):
        read_states([str(tmp_path / "a.csv")])
