//! An exclusive lock of a folder, held until dropped, released by the system if the process dies.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::format::error::{CacheError, CacheResult};

/// The name of the file that is locked.
pub(crate) const LOCK: &str = "lock";
/// Times that the folder is made again because a process that ended removed it.
const ATTEMPTS: usize = 1000;

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    folder: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of a folder, making the folder if it is not there (that above it is); `None` where
    /// another process has it.
    pub(crate) fn make(folder: &Path) -> CacheResult<Option<Self>> {
        let mut attempt = 0;
        loop {
            match fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CacheError::io(folder, "create", error));
                }
                _ => {}
            }
            match Self::take(folder) {
                // Its last owner removed it between our two steps.
                Err(CacheError::NotFound { .. }) if attempt < ATTEMPTS => attempt += 1,
                taken => return taken,
            }
        }
    }

    /// Takes the lock of a folder that is there.
    ///
    /// # Errors
    /// [`CacheError::NotFound`] if it is not; [`CacheError::Io`].
    pub(crate) fn take(folder: &Path) -> CacheResult<Option<Self>> {
        let path = folder.join(LOCK);
        loop {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|error| CacheError::io(&path, "open the lock file", error))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(CacheError::io(&path, "lock", error));
                }
            }
            // A process that ends removes the file: a lock of a removed file protects nothing.
            let held = file.metadata().map_err(|error| CacheError::io(&path, "stat", error))?;
            let same = |now: fs::Metadata| (now.dev(), now.ino()) == (held.dev(), held.ino());
            if fs::metadata(&path).is_ok_and(same) {
                return Ok(Some(Self { folder: folder.to_owned(), _file: file }));
            }
        }
    }

    /// Gives up the lock, and removes its file and the folder, if that then is empty.
    ///
    /// Everything else must have been removed before: from the moment that the file is gone another
    /// process may have the lock, and what is in the folder is that process's.
    pub(crate) fn remove(self) -> CacheResult<()> {
        let path = self.folder.join(LOCK);
        fs::remove_file(&path).map_err(|error| CacheError::io(&path, "remove", error))?;
        match fs::remove_dir(&self.folder) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Err(CacheError::io(&self.folder, "remove", error))
            }
            _ => Ok(()),
        }
    }
}
