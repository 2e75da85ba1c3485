//! Any bytes give a cache or an error.
#![no_main]

use bytes::Bytes;
use ebm_encode::cache::{Checks, EmbeddingCache};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for checks in [Checks::Strict, Checks::Lenient] {
        let bytes = Bytes::copy_from_slice(data);
        if let Ok(cache) = EmbeddingCache::from_bytes("fuzz", bytes, checks) {
            for (state, row) in cache.iter() {
                assert_eq!(row.len(), cache.dim());
                assert!(cache.get(state).is_some());
            }
        }
    }
});
