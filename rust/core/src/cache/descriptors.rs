//! Descriptors of the files that are read, at most so many of them at a time.
//!
//! A cache may have thousands of parts, and a process a thousand descriptors or fewer. So a file that is
//! read keeps its descriptor until many others were opened after it; then it is opened again by its
//! path, and must be the same file still.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::stamp::Stamp;

/// Descriptors of this process that are kept for files at rest. Threads that read hold one more each.
const KEPT: usize = 64;

/// A file of this machine that is opened when it is read.
#[derive(Debug)]
pub(super) struct Reopened {
    path: PathBuf,
    stamp: Stamp,
    slot: Arc<Slot>,
}

#[derive(Debug)]
struct Slot {
    file: Mutex<Option<Arc<File>>>,
    /// Whether it was read since it was last passed over.
    used: AtomicBool,
}

/// The slots with a descriptor, the oldest first.
static OPEN: Mutex<VecDeque<Weak<Slot>>> = Mutex::new(VecDeque::new());

impl Reopened {
    /// A file that was just opened at this path.
    pub(super) fn new(path: PathBuf, file: File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        let slot = Slot { file: Mutex::new(None), used: AtomicBool::new(false) };
        let reopened = Self { path, stamp, slot: Arc::new(slot) };
        reopened.keep(&Arc::new(file));
        Ok(reopened)
    }

    /// The file, opened if it is not.
    ///
    /// # Errors
    /// The system's, and one where the path leads to another file by now, or to a changed one.
    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        let kept = self.slot.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(file) = kept {
            self.slot.used.store(true, Ordering::Relaxed);
            return Ok(file);
        }
        let file = Arc::new(File::open(&self.path)?);
        if Stamp::of(&file.metadata()?) != self.stamp {
            let message = "another process replaced it after it was opened; open it again";
            return Err(io::Error::other(message));
        }
        self.keep(&file);
        Ok(file)
    }

    /// Keeps a descriptor, and gives up the oldest that nobody read of late.
    fn keep(&self, file: &Arc<File>) {
        *self.slot.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(file));
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(&self.slot));
        while open.len() > KEPT {
            let Some(oldest) = open.pop_front() else { break };
            let Some(slot) = oldest.upgrade() else { continue };
            if slot.used.swap(false, Ordering::Relaxed) {
                open.push_back(oldest);
            } else {
                *slot.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        }
    }
}
