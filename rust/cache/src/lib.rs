//! A cache of embeddings that can be trusted: plain Parquet files, each with the identity of the encoder
//! that made it, every row checked when it is written and when it is read.
//!
//! - [`EmbeddingCache`] holds a cache in memory and lends its rows; [`MappedCache`] reads them by address
//!   from files that many processes share. [`Cache`] is either.
//! - [`OutputLock`] and [`CacheWriter`] write one: rows are checked, checkpoints survive a crash, and a
//!   file or a part of a folder appears whole or not at all. One output has one writer.
//! - [`audit`] lists the bad rows of any file with a text column and a column of lists of numbers.
//!
//! A path may be a URL: `s3://bucket/key`, `gs://bucket/key`, `file:///path`.
//!
//! ```
//! use ebm_cache::{EmbeddingCache, Identity, OutputLock, Verdict, WriterOptions};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("states.parquet");
//! # let identity = r#"{"weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
//! #     "special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1,
//! #     "dtype": "float32", "quantization": "none", "max_length": null, "truncation": "none"}"#;
//! // The encoder says what it is: model, template, pooling, dtype.
//! let identity = Identity::from_json(identity)?;
//! let mut writer = OutputLock::acquire(&path)?.open(identity, 3, WriterOptions::default())?;
//! let verdicts = writer.append(&["⊢ 1 = 1", "⊢ True"], &[0.1, 0.2, 0.3, 0.0, 0.0, 0.0])?;
//! assert_eq!(verdicts[0], Verdict::Accepted);
//! assert!(matches!(verdicts[1], Verdict::Bad(_)), "a zero vector is refused");
//! writer.finish(serde_json::json!({"made_by": "the documentation"}))?;
//!
//! let cache = EmbeddingCache::open(&path)?;
//! assert_eq!(cache.get("⊢ 1 = 1"), Some(&[0.1, 0.2, 0.3][..])); // borrowed, no copy
//! assert_eq!(cache.get("⊢ True"), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// What is of no use without a feature is small; conditions on each line of it would say less.
#![cfg_attr(
    not(all(feature = "writer", feature = "object-store")),
    allow(dead_code, unused_imports, reason = "the writer's, or of object stores")
)]

// Without unwinding, the Parquet decoder's panics on damaged files would end the process, where errors
// are promised.
#[cfg(all(panic = "abort", not(feature = "panic-abort")))]
compile_error!(
    "ebm-cache turns panics of the Parquet decoder into errors, which `panic = \"abort\"` makes \
     impossible\nhint: remove it from the profile, or enable the feature `panic-abort` of ebm-cache to \
     accept that such a panic ends the process"
);

mod audit;
mod check;
mod file;
mod folder;
mod format;
mod page;
mod read;
pub mod storage;
#[cfg(feature = "writer")]
mod write;

pub use audit::{AuditReport, BadRowExample, NormSummary, audit};
pub use check::row_check::{Outlier, RowChecker, check_rows};
#[cfg(feature = "parquet")]
pub use file::failures::guard;
pub use file::reader::RowFile;
pub use folder::describe::{FileDescription, describe};
pub use folder::manifest::{MANIFEST, Manifest, Part};
pub use format::bad_row::BadRow;
pub use format::error::{CacheError, CacheResult};
pub use format::footer::{Footer, StateKey};
pub use format::identity::{FieldDifference, Identity, differences};
pub use format::options::{Checks, Checksums, OpenMode, OpenOptions};
pub use format::runs::Run;
pub use format::schema::{
    EMBEDDING_COLUMN, FORMAT_VERSION, METADATA_KEY, ROW_GROUP_ROWS, STATE_COLUMN, cache_schema,
};
pub use read::cache::{Cache, free_memory};
pub use read::in_memory::EmbeddingCache;
pub use read::mapped::MappedCache;
pub use read::neighbours::Neighbour;
#[cfg(feature = "writer")]
pub use write::compact::compact;
#[cfg(feature = "writer")]
pub use write::{CacheWriter, FinishReport, OutputLock, Verdict, WriterOptions};
