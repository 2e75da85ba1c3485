//! Two things of one encoder.

use std::path::Path;

use crate::format::error::{CacheError, CacheResult};
use crate::format::identity::{Identity, differences};

/// Refuses two things made by different encoders.
pub(crate) fn require_same(
    path: &Path,
    here: Option<&Identity>,
    there: Option<&Identity>,
    other: &str,
) -> CacheResult<()> {
    let differences = differences(here, there);
    if differences.is_empty() {
        return Ok(());
    }
    Err(CacheError::IdentityMismatch {
        path: path.to_owned(),
        other: other.to_owned(),
        differences,
    })
}
