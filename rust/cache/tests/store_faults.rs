//! An object store that fails, or changes, between any two calls: no row is lost, and a retry succeeds.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{append_good, identity, provenance, refs, row, rows, states};
use ebm_cache::storage::faulty::{Fault, bucket};
use ebm_cache::{
    CacheError, CacheResult, CacheWriter, EmbeddingCache, OutputLock, WriterOptions, audit, storage,
};

const DIM: usize = 8;

fn open(output: &str) -> CacheResult<CacheWriter> {
    let options = WriterOptions::default().with_checkpoint_rows(6);
    OutputLock::acquire(output)?.open(identity(), DIM, options)
}

/// A step that may fail twice, and then must not.
fn again<T>(mut step: impl FnMut() -> CacheResult<T>) -> T {
    step().or_else(|_| step()).or_else(|_| step()).unwrap()
}

fn offer(writer: &mut CacheWriter, numbers: Range<u64>) -> CacheResult<()> {
    let (texts, values) = (states(numbers.clone()), rows(numbers, DIM));
    writer.append(&refs(&texts), &values).map(|_| ())
}

/// A writer whose every step is tried again on the same writer, where there still is one.
fn persistent(output: &str, commits: bool) {
    let mut writer = again(|| open(output));
    for numbers in [0..10, 10..13, 13..25] {
        again(|| offer(&mut writer, numbers.clone()));
        again(|| writer.checkpoint());
        if commits {
            assert_eq!(again(|| writer.commit(provenance())), numbers.end);
        }
    }
    if commits {
        // A row that is taken back is in no part after the next commit.
        assert!(writer.retract(&states(3..4)[0]));
        assert_eq!(again(|| writer.commit(provenance())), 24);
        again(|| offer(&mut writer, 3..4));
        // Nor is one that is taken back while it is not known whether it was committed.
        again(|| offer(&mut writer, 25..26));
        let _ = writer.commit(provenance());
        let one_too_many = &states(25..26)[0];
        assert!(writer.retract(one_too_many));
        again(|| writer.commit(provenance()));
        let committed = again(|| EmbeddingCache::open(output));
        assert!(committed.get(one_too_many).is_none());
    }
    if writer.finish(provenance()).is_err() {
        let mut writer = open(output).unwrap();
        offer(&mut writer, 0..25).unwrap();
        writer.finish(provenance()).unwrap();
    }
}

/// A process that ends when anything fails, and its next run, which does the same.
fn restarted(output: &str, commits: bool) {
    let run = || -> CacheResult<()> {
        let mut writer = open(output)?;
        for numbers in [0..10, 10..13, 13..25] {
            offer(&mut writer, numbers)?;
            writer.checkpoint()?;
            if commits {
                writer.commit(provenance())?;
            }
        }
        writer.finish(provenance()).map(|_| ())
    };
    again(run);
}

fn assert_holds(output: &str, numbers: Range<u64>) {
    let cache = EmbeddingCache::open(output).unwrap();
    let found: BTreeMap<String, Vec<f32>> =
        cache.iter().map(|(state, row)| (state.to_owned(), row.to_vec())).collect();
    let expected = states(numbers.clone()).into_iter().zip(numbers.map(|i| row(i, DIM)));
    assert_eq!(found, expected.collect());
    assert_eq!(cache.len(), found.len(), "each state once");
    assert_eq!(audit(output, 3).unwrap().bad_rows(), 0);
}

fn left_of_shards(output: &str) -> Vec<PathBuf> {
    storage::list(Path::new(&format!("{output}.partial")), "parquet").unwrap()
}

#[test]
fn a_call_that_fails_loses_nothing_and_is_made_up_for() {
    type Run = fn(&str, bool);
    for (name, commits) in [("cache", true), ("cache", false), ("a.parquet", false)] {
        for run in [persistent as Run, restarted as Run] {
            let (store, faulty, sound) = bucket(None);
            run(&format!("{faulty}/{name}"), commits);
            assert_holds(&format!("{sound}/{name}"), 0..25);
            let calls = store.calls();
            assert!(calls > 20, "{calls} calls");
            for (at, fault) in (0..calls).flat_map(|at| [(at, Fault::Before), (at, Fault::After)]) {
                let (_, faulty, sound) = bucket(Some((at, fault)));
                run(&format!("{faulty}/{name}"), commits);
                let output = format!("{sound}/{name}");
                assert_holds(&output, 0..25);
                // What could not be tidied up, the next writer does.
                open(&output).unwrap().finish(provenance()).unwrap();
                assert_holds(&output, 0..25);
                assert!(left_of_shards(&output).is_empty(), "call {at} of {name}");
            }
        }
    }
}

/// Another writer's whole life; returns whether its rows are in the output.
fn other_writer(output: &str) -> CacheResult<()> {
    let mut writer = open(output)?;
    offer(&mut writer, 100..104)?;
    writer.finish(provenance()).map(|_| ())
}

#[test]
fn of_two_writers_neither_loses_rows_whenever_the_other_comes() {
    for name in ["cache", "a.parquet"] {
        let ours = |output: &str| -> CacheResult<()> {
            let mut writer = open(output)?;
            offer(&mut writer, 0..10)?;
            writer.finish(provenance()).map(|_| ())
        };
        let (store, faulty, _) = bucket(None);
        ours(&format!("{faulty}/{name}")).unwrap();
        let calls = store.calls();
        let mut conflicts = 0;
        for at in 0..calls {
            let (store, faulty, sound) = bucket(None);
            let (output, other) = (format!("{faulty}/{name}"), format!("{sound}/{name}"));
            let finished = Arc::new(Mutex::new(None));
            let (done, theirs) = (Arc::clone(&finished), other.clone());
            let step = move || *done.lock().unwrap() = Some(other_writer(&theirs));
            store.set_fault(Some((at, Fault::Meanwhile(Arc::new(step)))));
            if let Err(error) = ours(&output) {
                assert!(matches!(error, CacheError::Conflict { .. }), "call {at}: {error}");
                conflicts += 1;
                ours(&output).unwrap();
            }
            let cache = EmbeddingCache::open(&other).unwrap();
            assert!(states(0..10).iter().all(|state| cache.get(state).is_some()), "call {at}");
            let theirs = finished.lock().unwrap().take().unwrap();
            match theirs {
                Ok(()) => {
                    let lost = states(100..104).iter().filter(|s| cache.get(s).is_none()).count();
                    assert_eq!(lost, 0, "call {at} of {name}: rows of the other writer are lost");
                }
                Err(error) => assert!(matches!(error, CacheError::Conflict { .. }), "{error}"),
            }
        }
        assert!(conflicts > 0, "{name}");
    }
}

#[test]
fn the_same_rows_finished_by_another_writer_are_no_conflict() {
    for name in ["cache", "a.parquet"] {
        let (_, faulty, _) = bucket(None);
        let output = format!("{faulty}/{name}");
        let (mut first, mut second) = (open(&output).unwrap(), open(&output).unwrap());
        for writer in [&mut first, &mut second] {
            append_good(writer, &states(0..5), &rows(0..5, DIM));
        }
        assert!(first.finish(provenance()).unwrap().written);
        let report = second.finish(serde_json::json!({ "model": "another run" })).unwrap();
        assert_eq!((report.rows, report.written), (5, false));
        assert_holds(&output, 0..5);
        // Others that differ in one row are one.
        let mut third = open(&output).unwrap();
        append_good(&mut third, &states(5..7), &rows(5..7, DIM));
        let mut fourth = open(&output).unwrap();
        append_good(&mut fourth, &states(5..7), &rows(6..8, DIM));
        third.finish(provenance()).unwrap();
        let refused = fourth.finish(provenance()).unwrap_err();
        assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
        assert_holds(&output, 0..7);
    }
}

#[test]
fn an_object_of_many_pieces_is_whole_and_takes_nobody_s_place() {
    let dim = 1024;
    let (_, faulty, sound) = bucket(None);
    let output = format!("{faulty}/large.parquet");
    let open = || {
        let options = WriterOptions::default().with_checkpoint_rows(1_000_000);
        OutputLock::acquire(&output).unwrap().open(identity(), dim, options).unwrap()
    };
    let (mut writer, mut other) = (open(), open());
    append_good(&mut writer, &states(0..5000), &rows(0..5000, dim));
    append_good(&mut other, &states(5000..10_000), &rows(5000..10_000, dim));
    assert!(writer.finish(provenance()).unwrap().written);
    let refused = other.finish(provenance()).unwrap_err();
    assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
    let cache = EmbeddingCache::open(format!("{sound}/large.parquet")).unwrap();
    assert_eq!(cache.len(), 5000);
    assert!(cache.get(&states(0..1)[0]).is_some());
}
