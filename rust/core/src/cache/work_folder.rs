//! The folder beside an unfinished output: the lock, the checkpointed shards, the merged file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{CacheError, CacheResult};
use super::lock::try_lock;

const LOCK: &str = "lock";
const REJECTED: &str = "REJECTED";
const TEMPORARY: &str = "tmp";

/// `OUTPUT.partial`, locked for this process.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// Makes the folder beside `output` and locks it.
    pub(super) fn lock(output: &Path) -> CacheResult<Self> {
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        fs::create_dir_all(&path).map_err(|error| CacheError::io(&path, "create", error))?;
        match try_lock(&path.join(LOCK))? {
            Some(lock) => Ok(Self { path, _lock: lock }),
            None => Err(CacheError::Locked { path: output.to_owned() }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The finished shards, in the order in which they were written.
    pub(super) fn shards(&self) -> CacheResult<Vec<PathBuf>> {
        self.files_ending("parquet")
    }

    /// A path for the shard after those that exist.
    pub(super) fn next_shard(&self) -> CacheResult<PathBuf> {
        let last = self.shards()?.pop();
        let number = last
            .as_deref()
            .and_then(Path::file_stem)
            .and_then(|stem| stem.to_str()?.strip_prefix("part-")?.parse::<u64>().ok());
        Ok(self.path.join(format!("part-{:09}.parquet", number.map_or(0, |n| n + 1))))
    }

    /// Removes what a killed process was in the middle of writing.
    pub(super) fn remove_temporary(&self) -> CacheResult<()> {
        self.files_ending(TEMPORARY)?.iter().try_for_each(|file| remove(file))
    }

    /// Why the shards may not be resumed, if an earlier run rejected them.
    pub(super) fn rejected(&self) -> CacheResult<Option<String>> {
        let path = self.path.join(REJECTED);
        match fs::read_to_string(&path) {
            Ok(reason) => Ok(Some(reason)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io(&path, "read", error)),
        }
    }

    /// Marks the shards as not to be resumed.
    pub(super) fn reject(&self, reason: &str) -> CacheResult<()> {
        let path = self.path.join(REJECTED);
        fs::write(&path, reason).map_err(|error| CacheError::io(&path, "write", error))?;
        sync_folder(&self.path)
    }

    /// Removes all shards, and the mark of rejection.
    pub(super) fn clear(&self) -> CacheResult<()> {
        self.shards()?.iter().try_for_each(|file| remove(file))?;
        if self.rejected()?.is_some() {
            remove(&self.path.join(REJECTED))?;
        }
        Ok(())
    }

    /// Removes the folder with everything in it.
    pub(super) fn remove(&self) -> CacheResult<()> {
        fs::remove_dir_all(&self.path).map_err(|error| CacheError::io(&self.path, "remove", error))
    }

    fn files_ending(&self, ending: &str) -> CacheResult<Vec<PathBuf>> {
        let list = |error| CacheError::io(&self.path, "list", error);
        let mut files = Vec::new();
        for entry in self.path.read_dir().map_err(list)? {
            let file = entry.map_err(list)?.path();
            if file.extension().is_some_and(|extension| extension == ending) {
                files.push(file);
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

impl Drop for WorkFolder {
    /// Leaves no folder behind that holds nothing but the lock.
    fn drop(&mut self) {
        if self.shards().is_ok_and(|shards| shards.is_empty())
            && self.rejected().is_ok_and(|rejected| rejected.is_none())
        {
            // Nothing of value is lost if either fails: the next run finds an unlocked lock file.
            let _ = fs::remove_file(self.path.join(LOCK));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Writes a file by way of a temporary name: after a crash it is there whole or not at all.
///
/// `write` must leave the temporary file on the disk (fsync). What it leaves on an error is removed.
pub(super) fn write_atomically<T>(
    temporary_in: &Path,
    target: &Path,
    write: impl FnOnce(&Path) -> CacheResult<T>,
) -> CacheResult<T> {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(TEMPORARY);
    let temporary = temporary_in.join(name);
    let written = write(&temporary).and_then(|value| {
        fs::rename(&temporary, target).map_err(|error| CacheError::io(target, "write", error))?;
        Ok(value)
    });
    match written {
        Ok(value) => {
            let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
            sync_folder(folder.unwrap_or(Path::new(".")))?;
            Ok(value)
        }
        Err(error) => {
            // The error at hand says more than a failure to tidy up would.
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Waits until a folder's entries are on the disk.
fn sync_folder(folder: &Path) -> CacheResult<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| CacheError::io(folder, "sync", error))
}

pub(super) fn remove(file: &Path) -> CacheResult<()> {
    fs::remove_file(file).map_err(|error| CacheError::io(file, "remove", error))
}
