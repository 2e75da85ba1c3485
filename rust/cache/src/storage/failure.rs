//! What kept a disk or a store from answering a read.
//!
//! The Parquet reader makes texts of errors, which tell a failing disk from a damaged file no longer.
//! So the reads note it beside the file. Only the last read counts, and only in the thread that made it:
//! a failure of an hour ago, or of another thread, says nothing of these bytes.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    /// The last failure of this thread, and whose it was.
    static LAST: RefCell<Option<(u64, io::Error)>> = const { RefCell::new(None) };
}

/// Whether the last read of a file failed, in each thread.
#[derive(Debug)]
pub(crate) struct LastRead {
    file: u64,
}

impl Default for LastRead {
    fn default() -> Self {
        static FILES: AtomicU64 = AtomicU64::new(0);
        Self { file: FILES.fetch_add(1, Ordering::Relaxed) }
    }
}

impl LastRead {
    /// Notes a read that was answered.
    pub(crate) fn succeeded(&self) {
        LAST.with_borrow_mut(|last| {
            if last.as_ref().is_some_and(|(file, _)| *file == self.file) {
                *last = None;
            }
        });
    }

    /// Notes a read that was not answered.
    pub(crate) fn failed(&self, error: io::Error) {
        LAST.set(Some((self.file, error)));
    }

    /// Why the last read of this thread was not answered; `None` if it was, or after this was asked.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        LAST.with_borrow_mut(|last| {
            let ours = last.as_ref().is_some_and(|(file, _)| *file == self.file);
            if ours { last.take().map(|(_, error)| error) } else { None }
        })
    }
}
