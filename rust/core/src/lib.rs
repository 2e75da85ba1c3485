//! The pure-Rust core of ebm-encode: the embedding cache, the packing of token sequences, and how
//! many callers share an encoder.
//!
//! Nothing in this crate knows of Python. A prover links it to read a cache that the bulk encoder
//! wrote, and the Python package reaches the same code through a thin extension, so both sides
//! share one schema, one identity and one definition of a bad row.
//!
//! ```no_run
//! use ebm_encode::cache::EmbeddingCache;
//!
//! let cache = EmbeddingCache::open("states.parquet")?;
//! if let Some(row) = cache.get("n : ℕ\n⊢ n + 0 = n") {
//!     assert_eq!(row.len(), cache.dim()); // a borrowed &[f32], no copy
//! }
//! # Ok::<(), ebm_encode::cache::CacheError>(())
//! ```

// Without unwinding, the Parquet decoder's panics on damaged files and an encoder's panics would end
// the process, where errors are promised.
#[cfg(all(panic = "abort", not(feature = "panic-abort")))]
compile_error!(
    "ebm-encode turns panics of the Parquet decoder and of encoders into errors, which `panic = \
     \"abort\"` makes impossible\nhint: remove it from the profile, or enable the feature \
     `panic-abort` of ebm-encode to accept that such a panic ends the process"
);

pub mod attention;
pub mod cache;
pub mod encoder;
pub mod packing;
pub mod search;
pub mod threads;
