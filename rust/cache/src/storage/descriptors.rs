//! Descriptors of the files that are read, at most so many of them at a time.
//!
//! A cache may have thousands of parts, and a process a thousand descriptors or fewer. So a file that is
//! read keeps its descriptor until many others were opened after it; then it is opened again by its
//! path, and must be the same file still.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::storage::kept::{Pool, Slot};
use crate::storage::stamp::Stamp;

/// Descriptors of this process that are kept for files at rest. Threads that read hold one more each.
static OPEN: Pool<Arc<File>> = Pool::new(64);

/// A file of this machine that is opened when it is read.
#[derive(Debug)]
pub(crate) struct Reopened {
    path: PathBuf,
    stamp: Stamp,
    slot: Arc<Slot<Arc<File>>>,
}

impl Reopened {
    /// A file that was just opened at this path.
    pub(crate) fn new(path: PathBuf, file: File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        let reopened = Self { path, stamp, slot: Slot::empty() };
        OPEN.keep(&reopened.slot, Arc::new(file));
        Ok(reopened)
    }

    /// The file, opened if it is not.
    ///
    /// # Errors
    /// The system's, and one where the path leads to another file by now, or to a changed one.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        if let Some(file) = self.slot.get() {
            return Ok(file);
        }
        let file = Arc::new(File::open(&self.path)?);
        if Stamp::of(&file.metadata()?) != self.stamp {
            let message = "another process replaced it after it was opened; open it again";
            return Err(io::Error::other(message));
        }
        OPEN.keep(&self.slot, Arc::clone(&file));
        Ok(file)
    }
}
