//! Trajectory files as searches.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, UInt64Array};
use ebm_cache::CacheError;
use ebm_search::{RecordedSearch, TrajectoryError, read_searches};
use parquet::arrow::ArrowWriter;

type Row = (&'static str, u64, &'static str, Option<u64>);

fn write(folder: &Path, rows: &[Row], parents: ArrayRef) -> PathBuf {
    let path = folder.join("t.parquet");
    let theorems = StringArray::from_iter_values(rows.iter().map(|row| row.0));
    let ids = UInt64Array::from_iter_values(rows.iter().map(|row| row.1));
    let states = StringArray::from_iter_values(rows.iter().map(|row| row.2));
    let batch = RecordBatch::try_from_iter([
        ("theorem_name", Arc::new(theorems) as ArrayRef),
        ("state_id", Arc::new(ids)),
        ("state_pp", Arc::new(states)),
        ("parent_state_id", parents),
    ])
    .unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

const ROWS: [Row; 8] = [
    ("first", 0, "root", None),
    ("first", 1, "left", Some(0)),
    ("second", 0, "other root", None),
    ("first", 2, "right", Some(0)),
    ("first", 3, "below right", Some(2)),
    ("first", 4, "", Some(2)), // a finished proof
    ("first", 5, "below left", Some(1)),
    ("second", 1, "", Some(0)),
];

fn search(theorem: &str, requests: &[&[&str]]) -> RecordedSearch {
    let texts = |request: &&[&str]| request.iter().map(|&state| state.to_owned()).collect();
    RecordedSearch { theorem: theorem.to_owned(), requests: requests.iter().map(texts).collect() }
}

#[test]
fn the_children_of_a_node_are_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let expected = vec![
        search("first", &[&["root"], &["left", "right"], &["below right"], &["below left"]]),
        search("second", &[&["other root"]]),
    ];
    let unsigned: UInt64Array = ROWS.iter().map(|row| row.3).collect();
    let path = write(folder.path(), &ROWS, Arc::new(unsigned));
    assert_eq!(read_searches(&path).unwrap(), expected);
    let signed =
        Int64Array::from_iter_values(ROWS.iter().map(|row| row.3.map_or(-1, u64::cast_signed)));
    let path = write(folder.path(), &ROWS, Arc::new(signed));
    assert_eq!(read_searches(&path).unwrap(), expected);
}

#[test]
fn states_without_a_parent_come_after_the_root_in_small_requests() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Row> = (0..70).map(|id| ("t", id, "state", None)).collect();
    let path = write(folder.path(), &rows, Arc::new(UInt64Array::new_null(70)));
    let [search] = &read_searches(&path).unwrap()[..] else { unreachable!("one theorem") };
    assert_eq!(search.requests.iter().map(Vec::len).collect::<Vec<_>>(), [1, 32, 32, 5]);
    assert_eq!(search.states(), 70);
}

#[test]
fn what_is_no_trajectory_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = read_searches(&folder.path().join("none.parquet")).unwrap_err();
    assert!(
        matches!(missing, TrajectoryError::Unreadable(CacheError::NotFound { .. })),
        "{missing}"
    );
    let text = folder.path().join("text.parquet");
    std::fs::write(&text, "not Parquet").unwrap();
    assert!(read_searches(&text).unwrap_err().to_string().contains("text.parquet: not a readable"));
    let parents = StringArray::from_iter_values(ROWS.iter().map(|_| "0"));
    let path = write(folder.path(), &ROWS, Arc::new(parents));
    let error = read_searches(&path).unwrap_err().to_string();
    assert!(error.contains("\"parent_state_id\" is Utf8, expected uint64"), "{error}");
}
