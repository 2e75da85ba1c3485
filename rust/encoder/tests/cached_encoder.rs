//! A cache in front of an encoder: what is known is not encoded, and encoders are not mixed.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use ebm_cache::{Cache, CacheError, EmbeddingCache, Identity, OpenMode, OutputLock, WriterOptions};
use ebm_encoder::{
    CachedAnswer, CachedEmbedding, CachedEncoder, CachedEncoderOptions, CoalescerOptions,
    EncoderError, NoEmbedding, TestEncoder,
};
use serde_json::json;
use support::{DIM, block_on, fake, held, identity, identity_with};

/// A cache of some states with the embeddings of the fake encoder.
fn stored(folder: &Path, states: &[&str], identity: Identity) -> EmbeddingCache {
    let path = folder.join("stored.parquet");
    let lock = OutputLock::acquire(&path).unwrap();
    let mut writer = lock.open(identity, DIM, WriterOptions::default()).unwrap();
    let rows: Vec<f32> = states.iter().flat_map(|state| fake().row(state)).collect();
    writer.append(states, &rows).unwrap();
    writer.finish(json!({})).unwrap();
    EmbeddingCache::open(path).unwrap()
}

fn assert_right(states: &[&str], answers: &[CachedAnswer<'_>]) {
    assert_eq!(states.len(), answers.len());
    for (state, answer) in states.iter().zip(answers) {
        assert_eq!(**answer.as_ref().unwrap(), *fake().row(state), "{state}");
    }
}

#[test]
fn what_is_stored_costs_no_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let cache = stored(folder.path(), &["a", "b"], identity());
    let address = cache.get("a").unwrap().as_ptr();
    let encoder =
        CachedEncoder::new(fake(), Some(cache.into()), CachedEncoderOptions::default()).unwrap();
    let answers = encoder.encode(&["a", "b"]).unwrap();
    assert_right(&["a", "b"], &answers);
    assert_eq!(answers[0].as_ref().unwrap().as_ptr(), address, "by reference into the cache");
    assert_right(&["c", "a", "d", "c"], &encoder.encode(&["c", "a", "d", "c"]).unwrap());
    assert_right(&["d", "c"], &encoder.encode(&["d", "c"]).unwrap());
    let statistics = encoder.statistics();
    assert_eq!((statistics.requests, statistics.states), (3, 8));
    assert_eq!((statistics.cache_hits, statistics.memory_hits), (3, 2));
    assert_eq!((statistics.misses, statistics.coalesced), (3, 1));
    assert_eq!((statistics.encoder.encoded, statistics.encoder.calls), (2, 1));
    assert_eq!(statistics.tokens, 2, "the fake counts a token a byte");
    assert!(statistics.p50 <= statistics.p95 && statistics.p95 <= statistics.p99);
    assert!(matches!(encoder.get("c"), Some(CachedEmbedding::Encoded(_))));
    assert!(encoder.get("never").is_none());
}

#[test]
fn another_encoder_than_the_caches_is_refused_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let cache = || stored(folder.path(), &["a"], identity_with("bfloat16"));
    let error = CachedEncoder::new(fake(), Some(cache().into()), CachedEncoderOptions::default());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("dtype") && message.contains("bfloat16"), "{message}");
    let allowed = CachedEncoderOptions::default().with_allow_other_identity(true);
    let encoder = CachedEncoder::new(fake(), Some(cache().into()), allowed.clone()).unwrap();
    assert_right(&["a"], &encoder.encode(&["a"]).unwrap());
    let wider = TestEncoder::new(DIM + 1, identity()).unwrap();
    let error = CachedEncoder::new(wider, Some(cache().into()), allowed).unwrap_err();
    assert!(error.to_string().contains("rows have 8 values, the encoder's 9"), "{error}");
}

#[test]
fn states_without_a_row_say_why_and_are_asked_again() {
    let encoder = CachedEncoder::new(fake(), None, CachedEncoderOptions::default()).unwrap();
    for _ in 0..2 {
        let answers = encoder.encode(&["a", "a bad one", "poison"]).unwrap();
        assert_right(&["a"], &answers[..1]);
        assert!(matches!(answers[1], Err(NoEmbedding::Bad { .. })));
        assert!(matches!(answers[2], Err(NoEmbedding::Encoder(_))));
    }
    assert_eq!(encoder.statistics().memory_hits, 1, "only good rows are remembered");
}

#[test]
fn equal_states_asked_for_at_the_same_time_are_encoded_once() {
    let (held, begun, go_on) = held();
    let encoder = CachedEncoder::new(held, None, CachedEncoderOptions::default()).unwrap();
    thread::scope(|scope| {
        let ask = || assert_right(&["same"], &encoder.encode(&["same"]).unwrap());
        scope.spawn(ask);
        begun.recv().unwrap();
        for _ in 0..8 {
            scope.spawn(ask); // it is being encoded; none of them is
        }
        while encoder.statistics().misses < 9 {
            thread::yield_now();
        }
        go_on.send(()).unwrap();
    });
    assert_eq!(encoder.statistics().encoder.encoded, 1);
    assert_eq!(encoder.statistics().coalesced, 8);
}

#[test]
fn memory_keeps_to_its_limit() {
    let options = CachedEncoderOptions::default().with_memory_bytes(4000);
    let encoder = CachedEncoder::new(fake(), None, options).unwrap();
    let states: Vec<String> = (0..500).map(|i| format!("state {i}")).collect();
    for state in &states {
        assert_right(&[state], &encoder.encode(&[state]).unwrap());
    }
    let kept = states.iter().filter(|state| encoder.get(state).is_some()).count();
    assert!(kept <= 4000 / (DIM * 4 + 128), "{kept} are kept");
}

#[test]
fn a_mapped_cache_in_front_serves_copies_and_takes_part_in_the_checks() {
    let folder = tempfile::tempdir().unwrap();
    let path = stored(folder.path(), &["a", "b"], identity()).path().to_owned();
    let mapped = Cache::open(&path, OpenMode::Mapped).unwrap();
    let encoder =
        CachedEncoder::new(fake(), Some(mapped), CachedEncoderOptions::default()).unwrap();
    let answers = encoder.encode(&["b", "c", "a"]).unwrap();
    assert_right(&["b", "c", "a"], &answers);
    assert!(matches!(answers[0], Ok(CachedEmbedding::Copied(_))));
    let statistics = encoder.statistics();
    assert_eq!((statistics.cache_hits, statistics.encoder.encoded), (2, 1));
    let other = Cache::open(&path, OpenMode::Mapped).unwrap();
    let refused = CachedEncoder::new(
        TestEncoder::new(DIM, identity_with("bfloat16")).unwrap(),
        Some(other),
        CachedEncoderOptions::default(),
    );
    assert!(matches!(refused.unwrap_err(), CacheError::IdentityMismatch { .. }));
}

#[test]
fn a_stored_row_that_cannot_be_read_any_more_is_encoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = stored(folder.path(), &["a", "b"], identity()).path().to_owned();
    let mapped = Cache::open(&path, OpenMode::Mapped).unwrap();
    let encoder =
        CachedEncoder::new(fake(), Some(mapped), CachedEncoderOptions::default()).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, bytes).unwrap(); // in place, as no writer should
    assert_right(&["a"], &encoder.encode(&["a"]).unwrap());
    assert_eq!(encoder.statistics().encoder.encoded, 1);
}

#[test]
fn a_mapped_cache_with_a_damaged_page_or_a_bad_row_is_refused_as_one_in_memory_is() {
    let folder = tempfile::tempdir().unwrap();
    let states: Vec<String> = (0..5000).map(|i| format!("state {i}")).collect();
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    let path = stored(folder.path(), &states, identity()).path().to_owned();
    let mut bytes = fs::read(&path).unwrap();
    let last = fake().row(states[4999]);
    let last: Vec<u8> = last.iter().flat_map(|value| value.to_le_bytes()).collect();
    let place = bytes.windows(last.len()).position(|window| window == last).unwrap();
    bytes[place] ^= 1;
    fs::write(&path, bytes).unwrap();
    let open = |mode| Cache::open(&path, mode);
    let refused = |cache| {
        let options = CachedEncoderOptions::default();
        CachedEncoder::new(fake(), Some(cache), options).map(drop).unwrap_err().to_string()
    };
    let in_memory = open(OpenMode::InMemory).unwrap_err().to_string();
    assert!(in_memory.contains("CRC"), "{in_memory}");
    let mapped = refused(open(OpenMode::Mapped).unwrap());
    assert!(mapped.contains("CRC"), "{mapped}");
}

#[test]
fn what_is_encoded_is_appended_and_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("search.parquet");
    let options = || CachedEncoderOptions::default().with_append_to(path.clone());
    let first = CachedEncoder::new(fake(), None, options()).unwrap();
    assert_right(&["a", "b"], &first.encode(&["a", "b"]).unwrap());
    let second = CachedEncoder::new(fake(), None, options()).unwrap_err();
    assert!(matches!(second, CacheError::Locked { .. }), "{second}");
    drop(first); // as at the end of a process that did not finish
    assert!(!path.exists());
    let next = CachedEncoder::new(fake(), None, options()).unwrap();
    assert_right(&["c", "a"], &next.encode(&["c", "a"]).unwrap());
    let report = next.finish(json!({"by": "a search"})).unwrap().unwrap();
    assert_eq!(report.rows, 3);
    let cache = EmbeddingCache::open(&path).unwrap();
    for state in ["a", "b", "c"] {
        assert_eq!(cache.get(state).unwrap(), fake().row(state));
    }
    let other = TestEncoder::new(DIM, identity_with("float16")).unwrap();
    let error = CachedEncoder::new(other, None, options()).unwrap_err();
    assert!(error.to_string().contains("dtype"), "{error}");
}

#[test]
fn waiting_for_room_in_the_queue_has_an_end_too() {
    let (held, begun, go_on) = held();
    let coalescing = CoalescerOptions::default().with_queue(1);
    let options = CachedEncoderOptions::default().with_coalescing(coalescing);
    let encoder = CachedEncoder::new(held, None, options).unwrap();
    let time = Duration::from_millis(20);
    thread::scope(|scope| {
        scope.spawn(|| encoder.encode(&["first"]).unwrap());
        begun.recv().unwrap();
        scope.spawn(|| encoder.encode(&["second"]).unwrap());
        while encoder.statistics().encoder.requests < 2 {
            thread::yield_now();
        }
        let error = encoder.encode_within(&["third"], time).unwrap_err();
        assert_eq!(error, EncoderError::TimedOut(time));
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
    });
    assert_eq!(encoder.statistics().encoder.requests, 2, "what was given up was never accepted");
}

#[test]
fn a_caller_can_be_told_to_stop_waiting() {
    let (held, begun, go_on) = held();
    let encoder = CachedEncoder::new(held, None, CachedEncoderOptions::default()).unwrap();
    let mut looks = 0;
    let mut stop = || {
        looks += 1;
        looks == 2
    };
    let error = encoder.encode_unless(&["slow"], None, &mut stop).unwrap_err();
    assert_eq!((error, looks), (EncoderError::Interrupted, 2));
    begun.recv().unwrap();
    go_on.send(()).unwrap();
    assert_right(&["slow"], &encoder.encode_unless(&["slow"], None, &mut || true).unwrap());
}

#[test]
fn waiting_has_an_end_and_tasks_await() {
    let (held, begun, go_on) = held();
    let encoder = CachedEncoder::new(held, None, CachedEncoderOptions::default()).unwrap();
    let time = Duration::from_millis(1);
    thread::scope(|scope| {
        // Only once the encoder is at work is it sure to be busy when the time is up.
        let first = scope.spawn(|| encoder.encode(&["first"]).is_ok());
        begun.recv().unwrap();
        let error = encoder.encode_within(&["slow"], time).unwrap_err();
        assert_eq!(error, EncoderError::TimedOut(time));
        for _ in 0..3 {
            go_on.send(()).unwrap();
        }
        assert!(first.join().unwrap());
    });
    let states = ["a", "b"];
    assert_right(&states, &block_on(encoder.encode_async(&states)).unwrap());
    assert!(encoder.encode(&[]).unwrap().is_empty());
}
