//! Opens a cache and measures it: `cargo run --release --example lookups -- CACHE`.
//!
//! Prints one JSON object: seconds to open with and without the row checks, and lookups per second
//! on one thread, in random order: one by one, through `get_many` in batches of 64, and one by one of
//! texts that were made just before, as a search does, so that only the cache's side is far away.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use ebm_cache::{CacheError, Checks, EmbeddingCache};

const LOOKUPS: usize = 4_000_000;
const BATCH: usize = 64;

fn main() -> Result<(), CacheError> {
    let Some(path) = std::env::args().nth(1) else {
        return Err(CacheError::Argument("usage: lookups CACHE".to_owned()));
    };
    let start = Instant::now();
    drop(EmbeddingCache::open_with(&path, Checks::Lenient)?);
    let lenient = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let cache = EmbeddingCache::open(&path)?;
    let first = black_box(cache.get(cache.state(0))).is_some();
    let strict = start.elapsed().as_secs_f64();
    let states = shuffled(&cache);
    let single = rate(|| {
        let asked = states.iter().cycle().take(LOOKUPS);
        asked.filter(|state| black_box(cache.get(state)).is_some()).count()
    });
    let batched = rate(|| {
        let batches = states.chunks(BATCH).cycle().take(LOOKUPS / BATCH);
        batches.map(|batch| black_box(cache.get_many(batch)).len()).sum()
    });
    let fresh = fresh_rate(&cache, &states);
    println!(
        "{{\"found\": {first}, \"open_checked_s\": {strict:.4}, \"open_unchecked_s\": \
         {lenient:.4}, \"lookups_per_s\": {single:.0}, \"batched_lookups_per_s\": {batched:.0}, \
         \"lookups_of_fresh_texts_per_s\": {fresh:.0}}}"
    );
    Ok(())
}

/// Lookups per second of texts that were copied just before, outside the time that counts.
fn fresh_rate(cache: &EmbeddingCache, states: &[String]) -> f64 {
    let (mut took, mut done) = (Duration::ZERO, 0);
    for batch in states.chunks(BATCH).cycle().take(LOOKUPS / BATCH) {
        let texts = batch.to_vec();
        let start = Instant::now();
        done += texts.iter().filter(|state| black_box(cache.get(state)).is_some()).count();
        took += start.elapsed();
    }
    done as f64 / took.as_secs_f64()
}

fn rate(work: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let done = work();
    done as f64 / start.elapsed().as_secs_f64()
}

/// All states in a fixed random order, as own strings, as a search would hold them.
fn shuffled(cache: &EmbeddingCache) -> Vec<String> {
    let mut states: Vec<String> = cache.iter().map(|(state, _)| state.to_owned()).collect();
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    for i in (1..states.len()).rev() {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        let other = usize::try_from(bits % (i as u64 + 1)).unwrap_or(0);
        states.swap(i, other);
    }
    states
}
