//! An object store that fails, or changes, between any two calls: no row is lost, and a retry succeeds.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;
mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use async_trait::async_trait;
use common::{append_good, identity, provenance, refs, row, rows, states};
use ebm_encode::cache::{
    CacheError, CacheResult, CacheWriter, EmbeddingCache, OutputLock, WriterOptions, audit, storage,
};
use ebm_encode::encoder::{CachedEncoder, CachedEncoderOptions};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde_json::json;
use support::fake;

const DIM: usize = 8;

/// What happens at a call.
#[derive(Clone)]
enum Fault {
    /// It fails, and nothing is done.
    Before,
    /// It is done, and fails.
    After,
    /// It is done, and fails; so does the next one, which is not done.
    AfterAndNext,
    /// Something else happens just before.
    Meanwhile(Arc<dyn Fn() + Send + Sync>),
}

/// A store in memory with a fault at one of its calls.
struct Faulty {
    inner: Arc<InMemory>,
    calls: AtomicUsize,
    fault: Mutex<Option<(usize, Fault)>>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

fn failure() -> Error {
    Error::Generic { store: "faulty", source: "no answer".into() }
}

impl Faulty {
    /// Counts a call; returns whether it fails after it was done.
    fn call(&self) -> Result<bool> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let fault = self.fault.lock().unwrap().clone();
        match fault {
            Some((at, fault)) if at == call => match fault {
                Fault::Before => Err(failure()),
                Fault::After | Fault::AfterAndNext => Ok(true),
                Fault::Meanwhile(step) => {
                    thread::spawn(move || step()).join().unwrap();
                    Ok(false)
                }
            },
            Some((at, Fault::AfterAndNext)) if at + 1 == call => Err(failure()),
            _ => Ok(false),
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, key: &Key, bytes: PutPayload, how: PutOptions) -> Result<PutResult> {
        let lost = self.call()?;
        let put = self.inner.put_opts(key, bytes, how).await;
        if lost { Err(failure()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let lost = self.call()?;
        let upload = self.inner.put_multipart_opts(key, how).await;
        if lost { Err(failure()) } else { upload }
    }

    async fn get_opts(&self, key: &Key, how: GetOptions) -> Result<GetResult> {
        let lost = self.call()?;
        let got = self.inner.get_opts(key, how).await;
        if lost { Err(failure()) } else { got }
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        match self.call() {
            Ok(false) => self.inner.delete_stream(keys),
            Ok(true) => self.inner.delete_stream(keys).map(|_| Err(failure())).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        let lost = self.call()?;
        let found = self.inner.list_with_delimiter(prefix).await;
        if lost { Err(failure()) } else { found }
    }

    async fn copy_opts(&self, from: &Key, to: &Key, how: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, how).await
    }
}

/// A bucket with a fault at its `at`th call, and another name of the same bucket without.
fn bucket(fault: Option<(usize, Fault)>) -> (Arc<Faulty>, String, String) {
    static BUCKETS: AtomicUsize = AtomicUsize::new(0);
    let number = BUCKETS.fetch_add(1, Ordering::SeqCst);
    let (faulty, sound) = (format!("s3://faulty-{number}"), format!("s3://sound-{number}"));
    let inner = Arc::new(InMemory::new());
    let calls = AtomicUsize::new(0);
    let store = Arc::new(Faulty { inner: Arc::clone(&inner), calls, fault: Mutex::new(fault) });
    storage::use_store(&faulty, Arc::clone(&store) as Arc<dyn ObjectStore>);
    storage::use_store(&sound, inner);
    (store, faulty, sound)
}

fn open(output: &str) -> CacheResult<CacheWriter> {
    let options = WriterOptions { checkpoint_rows: 6, ..WriterOptions::default() };
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
            let calls = store.calls.load(Ordering::SeqCst);
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

/// A search that commits what it encodes and does not know whether that was done.
fn search(output: &str) {
    let options =
        CachedEncoderOptions { append_to: Some(output.into()), ..CachedEncoderOptions::default() };
    let encoder = again(|| {
        CachedEncoder::new(fake(), None, options.clone())
            .map_err(|error| CacheError::Argument(error.to_string()))
    });
    let encode = |states: &[&str]| {
        assert!(encoder.encode(states).unwrap().iter().all(Result::is_ok));
    };
    encode(&["a", "b"]);
    let _ = encoder.commit(json!({}));
    encode(&["c", "d"]);
    again(|| encoder.checkpoint());
    encode(&["e"]);
    assert_eq!(again(|| encoder.commit(json!({}))), Some(5));
    assert_eq!(encoder.statistics().not_appended, 0);
}

#[test]
fn a_search_appends_all_rows_also_those_after_a_commit_of_unknown_outcome() {
    let (store, faulty, _) = bucket(None);
    search(&format!("{faulty}/cache"));
    let calls = store.calls.load(Ordering::SeqCst);
    assert!(calls > 10, "{calls} calls");
    let faults = |at| [Fault::Before, Fault::After, Fault::AfterAndNext].map(|fault| (at, fault));
    for (at, fault) in (0..calls).flat_map(faults) {
        let (_, faulty, sound) = bucket(Some((at, fault)));
        search(&format!("{faulty}/cache"));
        let cache = EmbeddingCache::open(format!("{sound}/cache")).unwrap();
        assert_eq!(cache.len(), 5, "call {at}");
        for state in ["a", "b", "c", "d", "e"] {
            assert_eq!(cache.get(state).unwrap(), fake().row(state), "call {at}: {state}");
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
        let calls = store.calls.load(Ordering::SeqCst);
        let mut conflicts = 0;
        for at in 0..calls {
            let (store, faulty, sound) = bucket(None);
            let (output, other) = (format!("{faulty}/{name}"), format!("{sound}/{name}"));
            let finished = Arc::new(Mutex::new(None));
            let (done, theirs) = (Arc::clone(&finished), other.clone());
            let step = move || *done.lock().unwrap() = Some(other_writer(&theirs));
            *store.fault.lock().unwrap() = Some((at, Fault::Meanwhile(Arc::new(step))));
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
        let options = WriterOptions { checkpoint_rows: 1_000_000, ..WriterOptions::default() };
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
