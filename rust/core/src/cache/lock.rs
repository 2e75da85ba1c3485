//! An exclusive lock on a file, held until dropped, released by the system if the process dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{CacheError, CacheResult};

/// Takes the lock at `path`, creating the file; `None` where another process has it.
pub(super) fn try_lock(path: &Path) -> CacheResult<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let file = file.map_err(|error| CacheError::io(path, "open the lock file", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(CacheError::io(path, "lock", error)),
        }
        // A finishing writer removes the file: a lock on a removed file protects nothing.
        let held = file.metadata().map_err(|error| CacheError::io(path, "stat", error))?;
        if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Ok(Some(file));
        }
    }
}
