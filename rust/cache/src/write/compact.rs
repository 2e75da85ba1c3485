//! Many parts into one.

use std::path::Path;

use crate::folder::parts::{common_kind, open_files, provenances};
use crate::format::error::{CacheError, CacheResult};
use crate::storage::{self, Kind};
use crate::write::{FinishReport, OutputLock, WriterOptions};

/// Writes all parts of a cache's folder as one, of each state the row that counts.
///
/// Readers see the former parts or the new one. Bad rows are dropped, and each is in the report with its
/// state and the reason: a row that fails the row checks, and the earlier of two rows of a state that
/// differ. The runs that made the rows stay in the footer.
///
/// # Errors
/// [`CacheError::Argument`] for a file, and for parts of an unknown encoder; whatever keeps the parts
/// from being read, or the new one from being written.
pub fn compact(folder: impl AsRef<Path>) -> CacheResult<FinishReport> {
    // Locked first, so that nobody adds a part between the look and the writing.
    let lock = OutputLock::acquire(folder)?;
    let folder = &lock.output().to_owned();
    let files = open_files(folder)?;
    let refuse = |why| Err(CacheError::Argument(format!("{}: {why}", folder.display())));
    if storage::kind(folder)? != Kind::Folder {
        return refuse("is a file; only a folder has parts to make one of");
    }
    let (dim, identity) = common_kind(&files)?;
    let Some(identity) = identity else {
        return refuse("made by other software, so its encoder is unknown");
    };
    let last = provenances(&files).pop().unwrap_or_default();
    let options = WriterOptions::default().with_compact(true);
    lock.open(identity, dim, options)?.finish(last)
}
