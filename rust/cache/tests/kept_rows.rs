//! Nothing that a writer took disappears without a word, and what it accepts a strict open accepts,
//! whatever is done in whatever order.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::{file_names, open, provenance, refs, row};
use ebm_cache::{
    BadRow, CacheError, CacheWriter, EmbeddingCache, FinishReport, MANIFEST, MappedCache, StateKey,
    Verdict, audit, compact,
};
use proptest::prelude::*;
use tempfile::TempDir;

const DIM: usize = 8;

/// Which row is offered for a state.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Its own.
    Right,
    /// Its own up to rounding.
    Near,
    /// One of the state's that differs.
    Other,
    /// That of another state.
    CopyOf(u64),
    Zero,
    NotFinite,
    /// Its own, a thousand times as long.
    Long,
}

fn made(state: u64, kind: Kind) -> Vec<f32> {
    let scaled = |factor: f32| row(state, DIM).iter().map(|value| value * factor).collect();
    match kind {
        Kind::Right => row(state, DIM),
        Kind::Near => scaled(1.000_000_5),
        Kind::Other => row(state + 1000, DIM),
        Kind::CopyOf(other) => row(other, DIM),
        Kind::Zero => vec![0.0; DIM],
        Kind::NotFinite => [vec![f32::NAN], row(state, DIM)[1..].to_vec()].concat(),
        Kind::Long => scaled(1000.0),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(u64, Kind)>),
    /// Enough rows for norms to be compared.
    AppendMany(Kind),
    AllowEqual(u64, u64),
    Retract(u64),
    Checkpoint,
    Commit,
    Crash,
    Finish,
    Compact,
    /// A file that somebody puts into the folder while no writer is open.
    Foreign(Vec<(u64, Kind)>),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Right),
        1 => Just(Kind::Near),
        1 => Just(Kind::Other),
        2 => (0..STATES).prop_map(Kind::CopyOf),
        1 => Just(Kind::Zero),
        1 => Just(Kind::NotFinite),
        1 => Just(Kind::Long),
    ]
}

const STATES: u64 = 10;
const MANY: std::ops::Range<u64> = 100..180;

fn step() -> impl Strategy<Value = Step> {
    let offered = || prop::collection::vec((0..STATES, kind()), 1..8);
    prop_oneof![
        6 => offered().prop_map(Step::Append),
        1 => kind().prop_map(Step::AppendMany),
        2 => (0..STATES, 0..STATES).prop_map(|(left, right)| Step::AllowEqual(left, right)),
        3 => (0..STATES).prop_map(Step::Retract),
        2 => Just(Step::Checkpoint),
        2 => Just(Step::Commit),
        2 => Just(Step::Crash),
        1 => Just(Step::Finish),
        1 => Just(Step::Compact),
        2 => offered().prop_map(Step::Foreign),
    ]
}

fn text(state: u64) -> String {
    format!("⊢ {state} = {state}")
}

/// A cache, and what is known of it.
struct Model {
    around: TempDir,
    output: PathBuf,
    is_folder: bool,
    writer: Option<CacheWriter>,
    /// All rows that were offered for a state, in bits.
    offered: HashMap<String, Vec<Vec<u32>>>,
    /// States that a crash may not lose.
    durable: HashSet<String>,
    reported: HashSet<String>,
    retracted: bool,
    /// Files that are no part of the cache, with their bytes.
    strays: Vec<(PathBuf, Vec<u8>)>,
    number: u32,
}

impl Model {
    fn new(is_folder: bool) -> Self {
        let around = TempDir::new().unwrap();
        let output = around.path().join(if is_folder { "cache" } else { "cache.parquet" });
        if is_folder {
            fs::create_dir(&output).unwrap();
        }
        let (offered, reported, strays) = (HashMap::new(), HashSet::new(), Vec::new());
        let (durable, retracted, number) = (HashSet::new(), false, 0);
        let mut model = Self {
            around,
            output,
            is_folder,
            writer: None,
            offered,
            durable,
            reported,
            retracted,
            strays,
            number,
        };
        model.reopen();
        model
    }

    fn writer(&mut self) -> &mut CacheWriter {
        self.writer.as_mut().unwrap()
    }

    /// Opens the output; what a crash may not lose must be there, or reported.
    fn reopen(&mut self) {
        let writer = open(&self.output, DIM, 3);
        self.reported.extend(writer.left_out().iter().map(|(state, _)| state.clone()));
        for state in &self.durable {
            let known = writer.contains(state) || self.reported.contains(state);
            assert!(known, "{state:?} disappeared");
        }
        self.writer = Some(writer);
    }

    fn note_durable(&mut self) {
        let states: Vec<String> = self.offered.keys().cloned().collect();
        let writer = self.writer.as_ref().unwrap();
        self.durable = states.into_iter().filter(|state| writer.contains(state)).collect();
    }

    fn note(&mut self, report: FinishReport) {
        let bad = report.left_out.into_iter().chain(report.replaced);
        self.reported.extend(bad.map(|(state, _)| state));
    }

    fn append(&mut self, rows: &[(u64, Kind)]) {
        let states: Vec<String> = rows.iter().map(|(state, _)| text(*state)).collect();
        let values: Vec<Vec<f32>> = rows.iter().map(|(state, kind)| made(*state, *kind)).collect();
        self.note_offered(&states, &values);
        let verdicts = self.writer().append(&refs(&states), &values.concat()).unwrap();
        for (state, verdict) in states.iter().zip(verdicts) {
            let there = self.writer().contains(state);
            assert!(there || matches!(verdict, Verdict::Bad(_)), "{state:?} is {verdict:?}");
        }
    }

    fn note_offered(&mut self, states: &[String], values: &[Vec<f32>]) {
        for (state, row) in states.iter().zip(values) {
            let bits = row.iter().map(|value| value.to_bits()).collect();
            self.offered.entry(state.clone()).or_default().push(bits);
        }
    }

    fn files(&self) -> HashSet<PathBuf> {
        if !self.is_folder {
            return HashSet::new();
        }
        let entries = fs::read_dir(&self.output).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some()).collect() // not the work folder
    }

    /// Nobody's file goes unless a row was taken back.
    fn assert_files_stay(&self, before: &HashSet<PathBuf>) {
        let gone: Vec<_> = before.difference(&self.files()).cloned().collect();
        assert!(self.retracted || gone.is_empty(), "{gone:?} went though nobody asked");
    }

    fn foreign(&mut self, rows: &[(u64, Kind)]) {
        self.writer = None;
        self.number += 1;
        let made_at = self.around.path().join("made.parquet");
        let mut writer = open(&made_at, DIM, 100);
        for (state, kind) in rows {
            let (state, row) = (text(*state), made(*state, *kind));
            if writer.append(&[&state], &row).unwrap() == [Verdict::Accepted] {
                self.note_offered(&[state], &[row]);
            }
        }
        writer.finish(provenance()).unwrap();
        let there = self.output.join(format!("foreign-{}.parquet", self.number));
        if self.output.join(MANIFEST).exists() {
            self.strays.push((there.clone(), fs::read(&made_at).unwrap()));
        }
        fs::rename(made_at, there).unwrap();
        self.reopen();
    }

    fn compact(&mut self) {
        self.writer = None;
        match compact(&self.output) {
            Ok(report) => self.note(report),
            Err(error) => assert!(matches!(error, CacheError::NotFound { .. }), "{error}"),
        }
        self.retracted = true; // may have taken up a row in the place of one that was taken back
        self.reopen();
    }

    fn finish(&mut self) -> FinishReport {
        let before = self.files();
        let report = self.writer.take().unwrap().finish(provenance()).unwrap();
        self.assert_files_stay(&before);
        self.note(report.clone());
        report
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Append(rows) => self.append(rows),
            Step::AppendMany(kind) => {
                self.append(&MANY.map(|state| (state, *kind)).collect::<Vec<_>>());
            }
            Step::AllowEqual(left, right) => self.writer().allow_equal(&text(*left), &text(*right)),
            Step::Retract(state) => {
                let state = text(*state);
                let before = self.writer().contains(&state);
                assert_eq!(self.writer().retract(&state), before);
                self.retracted |= before;
                self.durable.remove(&state);
            }
            Step::Checkpoint => {
                self.writer().checkpoint().unwrap();
                self.note_durable();
            }
            Step::Commit if self.is_folder => {
                let before = self.files();
                self.writer().commit(provenance()).unwrap();
                self.assert_files_stay(&before);
                let named: Vec<_> = self.writer().left_out().to_vec();
                self.reported.extend(named.into_iter().map(|(state, _)| state));
                self.note_durable();
            }
            Step::Crash => {
                self.writer = None;
                self.reopen();
            }
            Step::Finish => {
                self.note_durable();
                self.finish();
                self.reopen();
            }
            Step::Compact if self.is_folder => self.compact(),
            Step::Foreign(rows) if self.is_folder => self.foreign(rows),
            Step::Commit | Step::Compact | Step::Foreign(_) => {}
        }
    }

    /// What must be so in the end.
    fn end(mut self) {
        self.note_durable();
        let report = self.finish();
        if !report.left_out.is_empty() || !report.replaced.is_empty() {
            // Bad rows may stand in files that nobody asked to be rewritten.
            if self.is_folder {
                let report = compact(&self.output).unwrap();
                self.note(report);
            }
        }
        let cache = match EmbeddingCache::open(&self.output) {
            Ok(cache) => cache,
            Err(error) => panic!("{error}; reported: {report:?}"),
        };
        assert_eq!(audit(&self.output, 3).unwrap().bad_rows(), 0);
        let mapped = MappedCache::open(&self.output).unwrap();
        let mut all = vec![0.0; cache.matrix().len()];
        mapped.gather_rows(&(0..cache.len()).collect::<Vec<_>>(), &mut all).unwrap();
        assert_eq!(all, cache.matrix());
        for state in &self.durable {
            let known = cache.get(state).is_some() || self.reported.contains(state);
            assert!(known, "{state:?} disappeared");
        }
        for (state, row) in cache.iter() {
            let bits: Vec<u32> = row.iter().map(|value| value.to_bits()).collect();
            assert!(self.offered[state].contains(&bits), "{state:?} has a row of nobody");
        }
        let rows: u64 = cache.runs().iter().map(|run| run.rows).sum();
        assert_eq!(rows, cache.len() as u64, "each row has a run");
        for (path, bytes) in &self.strays {
            assert_eq!(&fs::read(path).unwrap(), bytes, "{} is nobody's part", path.display());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn nothing_disappears_unreported_and_what_is_accepted_opens(
        is_folder in any::<bool>(),
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut model = Model::new(is_folder);
        for step in &steps {
            model.run(step);
        }
        model.end();
    }
}

type StateAndRow = (&'static str, Vec<f32>);

/// A folder with files of this writer that were made apart, each of (state, row) pairs.
fn folder_of(files: &[(&str, &[StateAndRow])]) -> (TempDir, PathBuf) {
    let around = TempDir::new().unwrap();
    let folder = around.path().join("cache");
    fs::create_dir(&folder).unwrap();
    for (name, rows) in files {
        let path = around.path().join(name);
        let mut writer = open(&path, DIM, 100);
        for (state, row) in *rows {
            assert_eq!(writer.append(&[state], row).unwrap(), [Verdict::Accepted]);
        }
        writer.finish(serde_json::json!({ "made": name })).unwrap();
        fs::rename(path, folder.join(name)).unwrap();
    }
    (around, folder)
}

/// One row of the first file is another state's of the second.
fn copied_between_files() -> (TempDir, PathBuf) {
    folder_of(&[
        ("x.parquet", &[("a", row(0, DIM)), ("b", row(1, DIM))]),
        ("y.parquet", &[("c", row(0, DIM)), ("d", row(3, DIM))]),
    ])
}

#[test]
fn compacting_names_the_bad_rows_that_it_takes_out() {
    let (_around, folder) = copied_between_files();
    let report = compact(&folder).unwrap();
    assert_eq!(report.rows, 3);
    let [(state, reason)] = &report.left_out[..] else { panic!("{report:?}") };
    assert!(state == "c" && matches!(reason, BadRow::Duplicate { .. }), "{report:?}");
    assert_eq!(EmbeddingCache::open(&folder).unwrap().len(), 3);
    let again = compact(&folder).unwrap();
    assert!(!again.written && again.left_out.is_empty());
}

#[test]
fn finishing_removes_no_file_for_its_bad_rows_and_names_them() {
    let (_around, folder) = copied_between_files();
    let writer = open(&folder, DIM, 100);
    assert!(!writer.contains("c") && writer.left_out()[0].0 == "c");
    let report = writer.finish(provenance()).unwrap();
    assert!(!report.written && report.left_out[0].0 == "c");
    assert_eq!(file_names(&folder), ["x.parquet", "y.parquet"]);
    // Nor if there is something new.
    let mut writer = open(&folder, DIM, 100);
    assert_eq!(writer.append(&["c", "e"], &[row(5, DIM), row(6, DIM)].concat()).unwrap().len(), 2);
    let report = writer.finish(provenance()).unwrap();
    assert!(report.written && report.left_out.is_empty() && report.replaced[0].0 == "c");
    assert_eq!(file_names(&folder).len(), 4, "two files, a part and the manifest");
    assert!(matches!(EmbeddingCache::open(&folder), Err(CacheError::BadRows { .. })));
    let report = compact(&folder).unwrap();
    assert_eq!((report.rows, report.replaced.len()), (5, 1));
    assert_eq!(EmbeddingCache::open(&folder).unwrap().get("c").unwrap(), row(5, DIM));
}

#[test]
fn a_bad_later_row_does_not_take_the_good_earlier_one_along() {
    let (_around, folder) = folder_of(&[
        ("a.parquet", &[("s0", row(0, DIM)), ("s1", row(1, DIM))]),
        ("b.parquet", &[("s0", row(1, DIM))]),
    ]);
    let report = compact(&folder).unwrap();
    assert_eq!((report.rows, &report.replaced[0].0[..]), (2, "s0"));
    assert_eq!(EmbeddingCache::open(&folder).unwrap().get("s0").unwrap(), row(0, DIM));
}

#[test]
fn of_two_rows_of_a_state_that_differ_the_earlier_is_named() {
    let (_around, folder) = folder_of(&[
        ("a.parquet", &[("s", row(0, DIM))]),
        ("b.parquet", &[("s", row(1, DIM)), ("t", row(2, DIM))]),
    ]);
    let report = compact(&folder).unwrap();
    assert!(matches!(&report.replaced[..], [(state, BadRow::Conflict { .. })] if state == "s"));
    assert_eq!(EmbeddingCache::open(&folder).unwrap().get("s").unwrap(), row(1, DIM));
}

#[test]
fn a_file_that_comes_while_a_writer_is_open_is_neither_hidden_nor_removed() {
    let (around, folder) = folder_of(&[("x.parquet", &[("a", row(0, DIM))])]);
    let mut writer = open(&folder, DIM, 100);
    let (_other, made) = folder_of(&[("y.parquet", &[("b", row(1, DIM))])]);
    fs::rename(made.join("y.parquet"), folder.join("y.parquet")).unwrap();
    writer.retract("a");
    writer.append(&["c"], &row(2, DIM)).unwrap();
    let error = writer.finish(provenance()).unwrap_err().to_string();
    assert!(error.contains("y.parquet") && error.contains("hint: "), "{error}");
    let report = open(&folder, DIM, 100).finish(provenance()).unwrap();
    assert_eq!(report.rows, 2, "the row that was taken back does not come back");
    let cache = EmbeddingCache::open(&folder).unwrap();
    assert!(cache.get("a").is_none() && cache.get("b").is_some() && cache.get("c").is_some());
    drop(around);
}

#[test]
fn a_copy_of_a_twin_is_found_after_the_other_twin_was_taken_back() {
    let around = TempDir::new().unwrap();
    let mut writer = open(&around.path().join("o.parquet"), DIM, 100);
    writer.allow_equal("a", "b");
    let same = row(1, DIM);
    assert_eq!(
        writer.append(&["a", "b"], &same.repeat(2)).unwrap(),
        [Verdict::Accepted, Verdict::Accepted]
    );
    writer.retract("a");
    let verdicts = writer.append(&["c"], &same).unwrap();
    assert!(matches!(verdicts[..], [Verdict::Bad(BadRow::Duplicate { .. })]), "{verdicts:?}");
}

#[test]
fn the_first_good_row_of_a_state_is_taken() {
    let around = TempDir::new().unwrap();
    let output = around.path().join("o.parquet");
    let mut writer = open(&output, DIM, 100);
    let offered = [vec![0.0; DIM], row(1, DIM), row(2, DIM), row(3, DIM)].concat();
    let verdicts = writer.append(&["a", "a", "b", "a"], &offered).unwrap();
    assert!(matches!(verdicts[0], Verdict::Bad(BadRow::ZeroNorm { .. })));
    assert_eq!(verdicts[1..], [Verdict::Accepted, Verdict::Accepted, Verdict::Present]);
    writer.finish(provenance()).unwrap();
    assert_eq!(EmbeddingCache::open(&output).unwrap().get("a").unwrap(), row(1, DIM));
}

#[test]
fn rows_are_adopted_as_readers_find_them() {
    let near: Vec<f32> = row(0, DIM).iter().map(|value| value * 1.001).collect();
    let (around, folder) = folder_of(&[
        ("a.parquet", &[("s", row(0, DIM)), ("t", row(1, DIM))]),
        ("b.parquet", &[("s", near.clone())]),
    ]);
    let output = around.path().join("o.parquet");
    let mut writer = open(&output, DIM, 100);
    writer.append(&["u"], &row(9, DIM)).unwrap();
    assert_eq!(writer.adopt(&folder, &["s", "t", "nowhere"]).unwrap(), 2);
    writer.append(&["v"], &row(8, DIM)).unwrap();
    writer.checkpoint().unwrap();
    drop(writer); // who made which row is known after a crash, too
    let mut writer = open(&output, DIM, 100);
    writer.append(&["w"], &row(7, DIM)).unwrap();
    writer.finish(provenance()).unwrap();
    let cache = EmbeddingCache::open(&output).unwrap();
    assert_eq!(cache.get("s").unwrap(), near);
    let made = |name: &str| serde_json::json!({ "made": name });
    let runs: Vec<_> = cache.runs().iter().map(|run| (run.rows, run.provenance.clone())).collect();
    let expected =
        [(1, provenance()), (1, made("a.parquet")), (1, made("b.parquet")), (2, provenance())];
    assert_eq!(runs, expected);
}

#[test]
fn the_provenance_of_each_run_stays_with_its_rows() {
    let around = TempDir::new().unwrap();
    let run = |name: &str| serde_json::json!({ "run": name });
    for output in [around.path().join("o.parquet"), around.path().join("folder")] {
        if output.extension().is_none() {
            fs::create_dir(&output).unwrap();
        }
        for (name, states) in [("one", 0..30), ("two", 30..50), ("three", 50..55)] {
            let mut writer = open(&output, DIM, 7);
            common::append_good(
                &mut writer,
                &common::states(states.clone()),
                &common::rows(states, DIM),
            );
            writer.finish(run(name)).unwrap();
        }
        let runs = || -> Vec<_> {
            let cache = EmbeddingCache::open(&output).unwrap();
            assert_eq!(MappedCache::open(&output).unwrap().runs(), cache.runs());
            cache.runs().iter().map(|run| (run.rows, run.provenance.clone())).collect()
        };
        assert_eq!(runs(), [(30, run("one")), (20, run("two")), (5, run("three"))]);
        let mut writer = open(&output, DIM, 7);
        writer.retract(&common::states(31..32)[0]);
        writer.finish(run("four")).unwrap();
        assert_eq!(runs(), [(30, run("one")), (19, run("two")), (5, run("three"))]);
    }
    let compacted = around.path().join("folder");
    compact(&compacted).unwrap();
    assert_eq!(EmbeddingCache::open(&compacted).unwrap().runs().len(), 3);
}

#[test]
fn rows_are_read_back_in_any_order() {
    let around = TempDir::new().unwrap();
    let mut writer = open(&around.path().join("o.parquet"), DIM, 5);
    common::append_good(&mut writer, &common::states(0..12), &common::rows(0..12, DIM));
    let found = writer.read(&[11, 3, 3, 0]).unwrap();
    let expected = [11, 3, 3, 0].map(|n| (common::states(n..n + 1).remove(0), row(n, DIM)));
    assert_eq!(found, expected);
    let error = writer.read(&[3, 12]).unwrap_err();
    assert!(matches!(error, CacheError::Argument(_)), "{error}");
    assert!(writer.read(&[12, 3]).is_err());
}

/// Footers of checkpoints grow with the new rows, not with all pairs so far.
#[test]
fn a_checkpoint_tells_of_the_pairs_of_its_own_rows() {
    let around = TempDir::new().unwrap();
    let output = around.path().join("o.parquet");
    let mut writer = open(&output, DIM, 1_000_000);
    let mut sizes = Vec::new();
    for batch in 0..20_u64 {
        for pair in 0..50 {
            let number = batch * 50 + pair;
            let (left, right) = (format!("left {number}"), format!("right {number}"));
            writer.allow_equal(&left, &right);
            let twice = row(number, DIM).repeat(2);
            assert_eq!(
                writer.append(&[&left, &right], &twice).unwrap(),
                [Verdict::Accepted, Verdict::Accepted]
            );
        }
        writer.checkpoint().unwrap();
        let shards = fs::read_dir(writer.work_folder()).unwrap().map(Result::unwrap);
        let shards = shards.filter(|file| file.path().extension().is_some_and(|e| e == "parquet"));
        sizes.push(shards.map(|file| file.metadata().unwrap().len()).max().unwrap());
    }
    // One of them is the footer of a whole row group; the others hold a hundred rows each.
    assert!(sizes[19] < 12 * sizes[0], "{sizes:?}");
    drop(writer);
    let writer = open(&output, DIM, 1_000_000);
    assert_eq!((writer.len(), writer.left_out().len()), (2000, 0));
    writer.finish(provenance()).unwrap();
    assert_eq!(EmbeddingCache::open(&output).unwrap().len(), 2000);
}

/// What a writer has, by state, after it was dropped without an end and opened again.
fn reopened(output: &Path) -> Vec<(String, Option<Vec<f32>>)> {
    let writer = open(output, DIM, 1000);
    let row = |state: &str| writer.stored(StateKey::of(state)).unwrap().map(|(_, row)| row);
    ["a", "b", "d"].iter().map(|state| ((*state).to_owned(), row(state))).collect()
}

fn expected(rows: [Option<u64>; 3]) -> Vec<(String, Option<Vec<f32>>)> {
    let states = ["a", "b", "d"].map(str::to_owned);
    states.into_iter().zip(rows.map(|number| number.map(|number| row(number, DIM)))).collect()
}

#[test]
fn a_row_that_was_taken_back_stays_so_in_the_next_writer() {
    let around = TempDir::new().unwrap();
    for (name, saved_first, then_b) in [
        ("1.parquet", true, true),
        ("2.parquet", true, false),
        ("3.parquet", false, true),
        ("4.parquet", false, false),
    ] {
        let output = around.path().join(name);
        let mut writer = open(&output, DIM, 1000);
        // The row of b, which somebody took for that of a.
        writer.append(&["a"], &row(1, DIM)).unwrap();
        if saved_first {
            writer.checkpoint().unwrap();
        }
        assert!(writer.retract("a"));
        if then_b {
            assert_eq!(writer.append(&["b"], &row(1, DIM)).unwrap(), [Verdict::Accepted]);
        }
        writer.checkpoint().unwrap();
        drop(writer);
        assert_eq!(reopened(&output), expected([None, then_b.then_some(1), None]), "{name}");
    }
}

#[test]
fn what_took_the_place_of_a_row_outlives_later_checkpoints() {
    let around = TempDir::new().unwrap();
    for (name, is_folder) in [("cache", true), ("a.parquet", false)] {
        let output = around.path().join(name);
        if is_folder {
            fs::create_dir(&output).unwrap();
        }
        let mut writer = open(&output, DIM, 1000);
        writer.append(&["a"], &row(0, DIM)).unwrap();
        writer.finish(provenance()).unwrap();
        let mut writer = open(&output, DIM, 1000);
        writer.retract("a");
        writer.append(&["a"], &row(1, DIM)).unwrap();
        writer.checkpoint().unwrap();
        writer.append(&["d"], &row(2, DIM)).unwrap();
        writer.checkpoint().unwrap();
        drop(writer);
        assert_eq!(reopened(&output), expected([Some(1), None, Some(2)]), "{name}");
        assert_eq!(reopened(&output), expected([Some(1), None, Some(2)]), "{name}, again");
        open(&output, DIM, 1000).finish(provenance()).unwrap();
        let cache = EmbeddingCache::open(&output).unwrap();
        assert_eq!((cache.len(), cache.get("a").unwrap()), (2, &row(1, DIM)[..]), "{name}");
    }
}
