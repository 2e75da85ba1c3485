//! What is said of a file that cannot be read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;

use crate::format::error::{CacheError, CacheResult};
use crate::storage::input::Input;

/// Runs a step of the Parquet reader; a panic in it becomes an error about the file.
///
/// The reader is sound on any bytes but not free of panics; no panic may reach our callers.
///
/// # Errors
/// Those of the step, and [`CacheError::Format`] for a panic.
#[cfg_attr(not(feature = "parquet"), expect(unreachable_pub, reason = "public by a feature"))]
pub fn guard<T>(path: &Path, step: impl FnOnce() -> CacheResult<T>) -> CacheResult<T> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the decoder gave up");
        Err(CacheError::format(path, format!("damaged Parquet file: {reason}")))
    })
}

/// Says in which row group a file is damaged.
pub(super) fn in_group(group: usize, error: CacheError) -> CacheError {
    match error {
        CacheError::Format { path, detail } => {
            CacheError::Format { path, detail: format!("row group {group}: {detail}") }
        }
        error => error,
    }
}

pub(super) fn not_parquet(path: &Path, input: &Input, error: &ParquetError) -> CacheError {
    if input.failure().is_none() && error.to_string().contains("invalid utf8") {
        let detail = "its metadata holds a text that is not UTF-8 (who wrote it, a key or a column)\n\
                      hint: write the file again, with pyarrow for example";
        return CacheError::format(path, detail);
    }
    unreadable(path, input, error, "not a Parquet file, or cut off")
}

/// What kept a file from being read: what is in it, or a disk or a store that did not answer.
pub(super) fn unreadable(
    path: &Path,
    input: &Input,
    error: &ParquetError,
    what: &str,
) -> CacheError {
    match input.failure() {
        Some(failure) => CacheError::io(path, "read", failure),
        None => CacheError::format(path, format!("{what}: {error}")),
    }
}
