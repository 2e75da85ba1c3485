//! A search that commits to a store that fails: no embedding is lost, whatever was made of a
//! commit.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use ebm_cache::storage::faulty::{Fault, bucket};
use ebm_cache::{CacheError, CacheResult, EmbeddingCache};
use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
use serde_json::json;
use support::fake;

/// A step that may fail twice, and then must not.
fn again<T>(mut step: impl FnMut() -> CacheResult<T>) -> T {
    step().or_else(|_| step()).or_else(|_| step()).unwrap()
}

/// A search that commits what it encodes and does not know whether that was done.
fn search(output: &str) {
    let options = CachedEncoderOptions::default().with_append_to(output);
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
    let calls = store.calls();
    assert!(calls > 10, "{calls} calls");
    let kinds = |at| [Fault::Before, Fault::After, Fault::AfterAndNext].map(|fault| (at, fault));
    for (at, fault) in (0..calls).flat_map(kinds) {
        let (_, faulty, sound) = bucket(Some((at, fault)));
        search(&format!("{faulty}/cache"));
        let cache = EmbeddingCache::open(format!("{sound}/cache")).unwrap();
        assert_eq!(cache.len(), 5, "call {at}");
        for state in ["a", "b", "c", "d", "e"] {
            assert_eq!(cache.get(state).unwrap(), fake().row(state), "call {at}: {state}");
        }
    }
}
