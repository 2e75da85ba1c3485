//! Any bytes give a cache or an error, whichever way they are read.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use bytes::Bytes;
use ebm_cache::{Checks, EmbeddingCache, MappedCache, OpenOptions};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = file();
    std::fs::write(file, data).unwrap();
    for checks in [Checks::Strict, Checks::Lenient] {
        let from_memory =
            EmbeddingCache::from_bytes("fuzz", Bytes::copy_from_slice(data), checks).ok();
        let from_disk = EmbeddingCache::open_with(file, checks).ok();
        assert_eq!(from_memory.is_some(), from_disk.is_some());
        for cache in [&from_memory, &from_disk].into_iter().flatten() {
            for (state, row) in cache.iter() {
                assert_eq!(row.len(), cache.dim());
                assert!(cache.get(state).is_some());
            }
        }
        let (Some(memory), Some(disk)) = (from_memory, from_disk) else { continue };
        assert_eq!(bits(memory.matrix()), bits(disk.matrix()));
        let Ok(mapped) = MappedCache::open_with(file, OpenOptions::from(checks)) else { continue };
        let numbers: Vec<usize> = (0..mapped.len()).collect();
        let mut rows = vec![0.0; mapped.len() * mapped.dim()];
        if mapped.gather_rows(&numbers, &mut rows).is_ok() {
            assert_eq!(bits(&rows), bits(disk.matrix()));
        }
    }
});

/// A file of this process's own.
fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        std::env::temp_dir().join(format!("ebm-encode-fuzz-{}.parquet", std::process::id()))
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
