//! Trajectory files of searches: their rows, and what survives a crash.

#[path = "support/tree.rs"]
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use ebm_search::record::{Existing, TrajectoryWriter, read_summaries, trajectory_schema};
use ebm_search::search::{
    Cancel, Limits, Ranking, Search, SearchOptions, SearchResult, Theorem, Timings,
};
use ebm_search::{Recording, TrajectoryError};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use tree::{Tree, TreePolicy};

const TREE: [(&str, &str, &str); 6] = [
    ("root", "a:-0.5", "dead end"),
    ("root", "b:-1", "way"),
    ("root", "c:-9", "untried"),
    ("way", "a:-0.25", "root"),
    ("way", "b:-0.5", "finish"),
    ("way", "c:-0.5", "dead end"),
];

fn search(name: &str) -> SearchResult {
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let options = SearchOptions::default().with_ranking(Ranking::policy(0.0));
    let search = Search::new(&tree, &policy, &options);
    search.run(&Theorem::named(name), &Cancel::default(), &mut Timings::default())
}

fn settings() -> Value {
    json!({ "policy": "tree", "limits": { "expansions": 600 } })
}

fn open(path: &Path, existing: Existing) -> TrajectoryWriter {
    TrajectoryWriter::open(path, settings(), existing).expect("opens")
}

fn names(theorems: &[&str]) -> Vec<String> {
    theorems.iter().map(|name| (*name).to_owned()).collect()
}

fn write(path: &Path, theorems: &[&str], existing: Existing) {
    let mut writer = open(path, existing);
    for name in theorems {
        writer.add(&search(name)).expect("written");
    }
    writer.finish(&names(theorems)).expect("finished");
}

fn rows(path: &Path) -> RecordBatch {
    let file = fs::File::open(path).expect("there");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet").build();
    let batches: Vec<RecordBatch> =
        reader.expect("readable").collect::<Result<_, _>>().expect("undamaged");
    arrow_select::concat::concat_batches(&batches[0].schema(), &batches).expect("one schema")
}

fn texts<'a>(rows: &'a RecordBatch, name: &str) -> Vec<&'a str> {
    rows[name].as_string::<i32>().iter().map(Option::unwrap_or_default).collect()
}

/// Theorems in the order of their rows.
fn theorems(path: &Path) -> Vec<String> {
    let rows = rows(path);
    let mut found: Vec<String> =
        texts(&rows, "theorem_name").into_iter().map(str::to_owned).collect();
    found.dedup();
    found
}

#[test]
fn the_columns_are_those_that_the_prover_of_the_origin_reads() {
    use DataType::{Boolean, Float64, Int32, UInt32, UInt64, Utf8};
    let schema = trajectory_schema();
    let columns: Vec<(&str, &DataType, bool)> = schema
        .fields()
        .iter()
        .map(|field| (field.name().as_str(), field.data_type(), field.is_nullable()))
        .collect();
    assert_eq!(
        columns,
        [
            ("theorem_name", &Utf8, false),
            ("state_id", &UInt64, false),
            ("state_pp", &Utf8, false),
            ("tactic_applied", &Utf8, false),
            ("parent_state_id", &UInt64, true),
            ("label", &Utf8, false),
            ("depth_from_root", &UInt32, false),
            ("remaining_depth", &Int32, false),
            ("llm_log_prob", &Float64, false),
            ("ebm_score", &Float64, false),
            ("is_proof_complete", &Boolean, false),
            ("timestamp_ms", &UInt64, false),
            ("q_value", &Float64, false),
            ("visits", &UInt32, false),
        ]
    );
}

#[test]
fn rows_are_the_accepted_tactics_with_labels_by_graph() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    write(&path, &["t"], Existing::Refuse);
    let rows = rows(&path);
    assert_eq!(rows.schema().fields(), trajectory_schema().fields());
    assert_eq!(
        texts(&rows, "state_pp"),
        ["root", "dead end", "way", "untried", "root", "", "dead end"]
    );
    assert_eq!(
        texts(&rows, "tactic_applied"),
        ["", "a:-0.5", "b:-1", "c:-9", "a:-0.25", "b:-0.5", "c:-0.5"]
    );
    assert_eq!(
        texts(&rows, "label"),
        ["positive", "negative", "positive", "unknown", "positive", "positive", "negative"]
    );
    let numbers = |name: &str| rows[name].as_primitive::<UInt64Type>().values().to_vec();
    assert_eq!(
        numbers("state_id"),
        [0, 1, 2, 3, 0, 4, 1],
        "a finished proof has a number of its own"
    );
    let parents = rows["parent_state_id"].as_primitive::<UInt64Type>();
    assert_eq!(
        parents.iter().collect::<Vec<_>>(),
        [None, Some(0), Some(0), Some(0), Some(2), Some(2), Some(2)]
    );
    let remaining = rows["remaining_depth"].as_primitive::<Int32Type>().values().to_vec();
    assert_eq!(remaining, [2, -1, 1, -1, 2, 0, -1]);
    let depth = rows["depth_from_root"].as_primitive::<UInt32Type>().values().to_vec();
    assert_eq!(depth, [0, 1, 1, 1, 2, 2, 2]);
    let log_probs = rows["llm_log_prob"].as_primitive::<Float64Type>().values().to_vec();
    assert_eq!(log_probs, [0.0, -0.5, -1.0, -9.0, -0.25, -0.5, -0.5]);
    let visits = rows["visits"].as_primitive::<UInt32Type>().values().to_vec();
    assert_eq!(visits, [1, 1, 1, 0, 1, 0, 1]);
    let scores = rows["ebm_score"].as_primitive::<Float64Type>();
    assert!(scores.values().iter().all(|score| score.is_nan()), "not scored is no number");
    assert!(numbers("timestamp_ms").iter().all(|time| *time > 1_700_000_000_000));
    assert_eq!(rows["q_value"].null_count(), 0);
}

#[test]
fn a_written_search_is_replayed_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    write(&path, &["t", "u"], Existing::Refuse);
    let recording = Recording::read(&[&path]).expect("readable");
    assert_eq!(recording.theorems(), ["t", "u"]);
    let distances = recording.distances("t");
    assert_eq!(distances.get("root"), Some(&2));
    assert_eq!(distances.get("way"), Some(&1));
    assert_eq!(distances.get("dead end"), None);
    let environment = ebm_search::environments::ReplayEnvironment::new(recording);
    let policy = TreePolicy(Tree::new(&TREE).steps);
    let options = SearchOptions::default().with_ranking(Ranking::policy(0.0));
    let search = Search::new(&environment, &policy, &options);
    let again = search.run(&Theorem::named("u"), &Cancel::default(), &mut Timings::default());
    let proof = again.proof.expect("proved again");
    assert_eq!(
        proof.tactics.iter().map(|tactic| &**tactic).collect::<Vec<_>>(),
        ["b:-1", "b:-0.5"]
    );
}

#[test]
fn theorems_stand_in_the_given_order_whatever_came_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let mut writer = open(&path, Existing::Refuse);
    for name in ["c", "a", "b"] {
        writer.add(&search(name)).expect("written");
    }
    writer.finish(&names(&["a", "b", "c"])).expect("finished");
    assert_eq!(theorems(&path), ["a", "b", "c"]);
    assert!(!folder.path().join("t.parquet.partial").exists(), "nothing is left behind");
}

#[test]
fn what_was_flushed_survives_a_crash_and_is_resumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let mut writer = open(&path, Existing::Refuse);
    writer.add(&search("a")).expect("written");
    writer.flush().expect("flushed");
    writer.add(&search("b")).expect("taken, and lost with the process");
    drop(writer); // as if killed: the lock goes, the shards stay
    let refused = TrajectoryWriter::open(&path, settings(), Existing::Refuse);
    assert!(matches!(refused, Err(TrajectoryError::Exists { .. })));
    let mut writer = open(&path, Existing::Resume);
    assert_eq!(writer.finished().keys().collect::<Vec<_>>(), ["a"]);
    writer.add(&search("b")).expect("written");
    writer.add(&search("a")).expect("known already");
    writer.finish(&names(&["a", "b"])).expect("finished");
    assert_eq!(theorems(&path), ["a", "b"]);
    // And once more, from the finished file.
    let mut writer = open(&path, Existing::Resume);
    assert_eq!(writer.finished().len(), 2);
    writer.add(&search("c")).expect("written");
    writer.finish(&names(&["b", "a", "c"])).expect("finished");
    assert_eq!(theorems(&path), ["b", "a", "c"]);
}

#[test]
fn many_shards_are_merged_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let mut writer = open(&path, Existing::Refuse);
    let all: Vec<String> = (0..150).map(|number| format!("t{number:03}")).collect();
    for name in &all {
        writer.add(&search(name)).expect("written");
        writer.flush().expect("flushed");
        let shards = fs::read_dir(folder.path().join("t.parquet.partial")).expect("there").count();
        assert!(shards <= 66, "{shards} files");
    }
    drop(writer);
    let writer = open(&path, Existing::Resume);
    assert_eq!(writer.finished().len(), 150);
    writer.finish(&all).expect("finished");
    assert_eq!(theorems(&path), all);
}

#[test]
fn other_settings_and_other_files_are_refused_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    write(&path, &["a"], Existing::Refuse);
    let before = fs::read(&path).expect("there");
    let other = json!({ "policy": "tree", "limits": { "expansions": 10 } });
    let refused = TrajectoryWriter::open(&path, other, Existing::Resume);
    let Err(TrajectoryError::OtherSettings { differences, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(differences, ["limits was {\"expansions\":600}, is {\"expansions\":10}"]);
    let foreign = folder.path().join("foreign.parquet");
    fs::write(&foreign, b"PAR1 nonsense").expect("written");
    assert!(TrajectoryWriter::open(&foreign, settings(), Existing::Resume).is_err());
    assert!(TrajectoryWriter::open(folder.path(), settings(), Existing::Refuse).is_err());
    assert_eq!(fs::read(&path).expect("there"), before);
    write(&path, &["b"], Existing::Overwrite);
    assert_eq!(theorems(&path), ["b"]);
}

#[test]
fn two_searches_cannot_write_one_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let writer = open(&path, Existing::Refuse);
    let second = TrajectoryWriter::open(&path, settings(), Existing::Resume);
    assert!(second.is_err_and(|error| error.to_string().contains("another process")));
    drop(writer);
}

#[test]
fn an_incomplete_search_is_not_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let mut tree = Tree::new(&TREE);
    tree.fails_at = Some("c:-0.5");
    let policy = TreePolicy(tree.steps.clone());
    let options = SearchOptions::default();
    let failed = Search::new(&tree, &policy, &options).run(
        &Theorem::named("a"),
        &Cancel::default(),
        &mut Timings::default(),
    );
    let mut writer = open(&path, Existing::Refuse);
    writer.add(&failed).expect("not taken");
    assert!(writer.finished().is_empty());
}

#[test]
fn summaries_say_what_each_search_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("t.parquet");
    let mut writer = open(&path, Existing::Refuse);
    writer.add(&search("a")).expect("written");
    let tree = Tree::new(&TREE);
    let policy = TreePolicy(tree.steps.clone());
    let limits = Limits::default().with_expansions(1);
    let options = SearchOptions::default().with_limits(limits);
    let short = Search::new(&tree, &policy, &options);
    let short = short.run(&Theorem::named("b"), &Cancel::default(), &mut Timings::default());
    writer.add(&short).expect("written");
    writer.finish(&[]).expect("finished");
    let summaries = read_summaries(&path).expect("readable");
    assert_eq!(summaries["a"].proof, Some(vec!["b:-1".to_owned(), "b:-0.5".to_owned()]));
    assert_eq!((summaries["a"].expansions, summaries["a"].proof_expansions), (3, Some(3)));
    assert_eq!(summaries["b"].ended, "expansion limit");
    assert!(!summaries["b"].solved());
    let known: BTreeSet<&String> = summaries.keys().collect();
    assert_eq!(known.len(), 2);
}
