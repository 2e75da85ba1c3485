//! Rows, states and identities for tests.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ebm_cache::{CacheWriter, Identity, OutputLock, Verdict, WriterOptions};

pub fn identity() -> Identity {
    Identity {
        weights: "blake3:w".into(),
        config: "blake3:c".into(),
        code: None,
        tokenizer: "blake3:t".into(),
        template: "{state}".into(),
        special_tokens: "tokenizer-default-once".into(),
        pooling: "mean".into(),
        layer: -1,
        dtype: "float32".into(),
        quantization: "none".into(),
        max_length: Some(2048),
        truncation: "right".into(),
        extra: BTreeMap::new(),
    }
}

pub fn other_identity() -> Identity {
    Identity { dtype: "bfloat16".into(), ..identity() }
}

/// A row that is like no other seed's: values in `[-1, 1)` from a splitmix64 sequence.
pub fn row(seed: u64, dim: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32;
        unit - 1.0
    };
    (0..dim).map(|_| next()).collect()
}

pub fn rows(seeds: std::ops::Range<u64>, dim: usize) -> Vec<f32> {
    seeds.flat_map(|seed| row(seed, dim)).collect()
}

pub fn states(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|i| format!("n : ℕ\nh{i} : n = {i}\n⊢ n + 0 = {i}")).collect()
}

pub fn refs(states: &[String]) -> Vec<&str> {
    states.iter().map(String::as_str).collect()
}

pub fn open(output: &Path, dim: usize, checkpoint_rows: usize) -> CacheWriter {
    let options = WriterOptions::default().with_checkpoint_rows(checkpoint_rows);
    OutputLock::acquire(output).unwrap().open(identity(), dim, options).unwrap()
}

/// Appends rows that must all be good.
pub fn append_good(writer: &mut CacheWriter, states: &[String], rows: &[f32]) {
    let verdicts = writer.append(&refs(states), rows).unwrap();
    assert!(verdicts.iter().all(|v| *v == Verdict::Accepted), "{verdicts:?}");
}

pub fn provenance() -> serde_json::Value {
    serde_json::json!({ "model": "a model", "note": "test" })
}

/// The names of all that is in a folder, sorted.
pub fn file_names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
