//! What a search encodes is appended by its own thread: in time, and in spite of failures.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ebm_cache::EmbeddingCache;
use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
use serde_json::json;
use support::fake;

fn appending_to(path: &Path, interval: Duration) -> CachedEncoder {
    let options = CachedEncoderOptions::default()
        .with_append_to(path.to_owned())
        .with_checkpoint_interval(interval);
    CachedEncoder::new(fake(), None, options).unwrap()
}

const NEVER: Duration = Duration::from_secs(3600);

/// The one folder of checkpoints beside an output.
fn work_folder(folder: &Path) -> PathBuf {
    let mut found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    found.find(|path| path.is_dir()).unwrap()
}

fn shards(work: &Path) -> usize {
    let names = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|end| end == "parquet")).count()
}

/// Waits for something that another thread does.
fn until(what: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if what() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("state {i}")).collect()
}

fn encode_all(encoder: &CachedEncoder, states: &[String]) {
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    assert!(encoder.encode(&states).unwrap().iter().all(Result::is_ok));
}

#[test]
fn rows_of_a_quiet_search_are_saved_after_the_interval() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = appending_to(&folder.path().join("c.parquet"), Duration::from_millis(50));
    encode_all(&encoder, &many(10));
    let work = work_folder(folder.path());
    assert!(until(|| shards(&work) == 1), "nothing is saved though nothing else is asked");
    drop(encoder);
}

#[test]
fn rows_that_could_not_be_saved_are_kept_and_saved_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.parquet");
    let encoder = appending_to(&path, NEVER);
    encode_all(&encoder, &many(10));
    encoder.checkpoint().unwrap();
    let work = work_folder(folder.path());
    let away = folder.path().join("away");
    fs::rename(&work, &away).unwrap();
    encode_all(&encoder, &many(2500)); // the writer saves after 2,000 embeddings
    for _ in 0..2 {
        encoder.checkpoint().unwrap_err();
    }
    encode_all(&encoder, &many(3000));
    fs::rename(&away, &work).unwrap();
    encoder.checkpoint().unwrap();
    assert_eq!(encoder.statistics().not_appended, 0);
    encode_all(&encoder, &many(3010));
    assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, 3010);
    assert_eq!(EmbeddingCache::open(&path).unwrap().len(), 3010);
}

#[test]
fn saving_is_tried_again_without_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.parquet");
    let encoder = appending_to(&path, Duration::from_millis(50));
    let work = work_folder(folder.path());
    let away = folder.path().join("away");
    fs::rename(&work, &away).unwrap();
    encode_all(&encoder, &many(10));
    thread::sleep(Duration::from_millis(300)); // at least one checkpoint fails
    fs::rename(&away, &work).unwrap();
    assert!(until(|| shards(&work) > 0), "no checkpoint is made after one that failed");
}

#[test]
fn an_encoder_that_is_dropped_saves_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.parquet");
    let encoder = appending_to(&path, NEVER);
    encode_all(&encoder, &many(5));
    drop(encoder);
    let next = appending_to(&path, NEVER);
    assert_eq!(next.finish(json!({})).unwrap().unwrap().rows, 5);
}
