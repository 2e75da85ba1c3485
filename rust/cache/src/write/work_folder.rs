//! The folder of an unfinished output: the lock, the checkpointed shards, the file that grows.

use std::path::{Path, PathBuf};

use crate::format::error::{CacheError, CacheResult};
use crate::format::schema::PARQUET;
use crate::storage::lock::{LOCK, Lock};
use crate::storage::{self, Kind, Replaces, Sink, Size, store_at};

/// How the work folder's name ends; in a folder of this machine it is the whole name.
const PARTIAL: &str = ".partial";
const REJECTED: &str = "REJECTED";
/// How the names of shards end in a folder: whoever looks for `**/*.parquet` must not find them.
const SHARD: &str = "shard";
/// How the names of files end that grow until they are the output.
const ROWS: &str = "rows";
/// How the names of lists end that a run keeps here until it is finished.
const JOURNAL: &str = "jsonl";

/// The work folder of an output, locked for this process.
///
/// That of a file is `OUTPUT.partial` beside it. That of a folder of this machine is `.partial` in it: a
/// folder may be a mount point or lead to another disk, and files are renamed into it. Readers list one
/// level, most tools skip a name that begins with a dot, and no file in it ends in `.parquet`.
///
/// Object stores have no locks that end with their process. There, shards are numbered, and one with a
/// number that is taken is refused: so of two writers at once one fails, and nothing is left behind
/// by a process that died.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    output: PathBuf,
    /// How the names of shards end.
    ending: &'static str,
    lock: Option<Lock>,
    /// `OUTPUT.partial` beside a folder, where earlier versions kept the checkpoints.
    older: Option<Older>,
    /// Number of the next shard.
    next: u64,
    /// The shards that were there, and those written since: others are another writer's.
    known: Vec<PathBuf>,
    /// Shards that may have been written although the store did not say so, with their digests.
    unsure: Vec<(PathBuf, blake3::Hash)>,
}

#[derive(Debug)]
struct Older {
    path: PathBuf,
    lock: Lock,
}

impl WorkFolder {
    /// Makes the work folder of `output`, a resolved path, and locks it.
    ///
    /// # Errors
    /// [`CacheError::Locked`] if another process has it; [`CacheError::Io`].
    pub(crate) fn lock(output: &Path) -> CacheResult<Self> {
        let beside = beside(output);
        let remote = storage::is_remote(output)?;
        let inside = !remote && storage::kind(output)? == Kind::Folder;
        let path = if inside { output.join(PARTIAL) } else { beside.clone() };
        let locked =
            |lock: Option<Lock>| lock.ok_or_else(|| CacheError::Locked { path: output.to_owned() });
        let lock = if remote { None } else { Some(locked(Lock::make(&path)?)?) };
        if lock.is_some() {
            // It may be there since a process died before its entry was on the disk.
            storage::sync_folder_of(&path)?;
        }
        let mut folder = Self {
            output: output.to_owned(),
            path,
            ending: if inside { SHARD } else { PARQUET },
            lock,
            older: None,
            next: 0,
            known: Vec::new(),
            unsure: Vec::new(),
        };
        if inside && beside.join(LOCK).is_file() {
            // Locked, too: a process of an earlier version may be at work.
            let lock = match Lock::take(&beside) {
                Err(CacheError::NotFound { .. }) => None, // it just ended
                taken => Some(locked(taken?)?),
            };
            folder.older = lock.map(|lock| Older { path: beside, lock });
            folder.take_up_lists()?;
        }
        folder.take_up_shards()?;
        Ok(folder)
    }

    /// Finds the shards that are there: first those of an earlier version, which come before all others.
    fn take_up_shards(&mut self) -> CacheResult<()> {
        for folder in self.folders() {
            if storage::kind(&folder)? != Kind::Folder {
                continue;
            }
            let ending = if folder == self.path { self.ending } else { PARQUET };
            let shards = storage::list(&folder, ending)?;
            let mut shards: Vec<(u64, PathBuf)> =
                shards.into_iter().filter_map(|shard| Some((number(&shard)?, shard))).collect();
            shards.sort_unstable();
            for (number, shard) in shards {
                self.next = self.next.max(number.saturating_add(1));
                self.known.push(shard);
            }
        }
        Ok(())
    }

    /// Copies the lists of a run of an earlier version to where this one's are.
    fn take_up_lists(&self) -> CacheResult<()> {
        let Some(older) = &self.older else { return Ok(()) };
        for list in storage::list(&older.path, JOURNAL)? {
            let here = self.path.join(list.file_name().unwrap_or_default());
            if let Some(content) = storage::read_file(&list)?
                && !here.exists()
            {
                storage::write_file(&here, &content)?;
            }
        }
        Ok(())
    }

    /// The folders in which shards may be.
    fn folders(&self) -> Vec<PathBuf> {
        let older = self.older.iter().map(|older| older.path.clone());
        older.chain([self.path.clone()]).collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The finished shards, in the order in which they were written.
    pub(crate) fn shards(&self) -> &[PathBuf] {
        &self.known
    }

    /// Removes a shard.
    pub(crate) fn remove_shard(&mut self, shard: &Path) -> CacheResult<()> {
        storage::remove_file(shard)?;
        self.known.retain(|known| known != shard);
        Ok(())
    }

    /// Whether it is on this machine, where a file may grow.
    pub(crate) fn is_local(&self) -> bool {
        self.lock.is_some()
    }

    /// A path for a file that grows, which no shard's rows are in.
    pub(crate) fn next_rows(&self) -> PathBuf {
        self.path.join(format!("part-{:09}.{ROWS}", self.next))
    }

    /// Removes the files with rows that no shard is the footer of.
    pub(crate) fn remove_rows_but(&self, kept: impl Fn(&Path) -> bool) -> CacheResult<()> {
        if !self.is_local() {
            return Ok(());
        }
        for folder in self.folders() {
            let files = storage::list(&folder, ROWS)?;
            files
                .iter()
                .filter(|file| !kept(file))
                .try_for_each(|file| storage::remove_file(file))?;
        }
        Ok(())
    }

    /// Writes the shard after those that exist, and returns its path.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if another process wrote one of this number; [`CacheError::Io`].
    pub(crate) fn write_shard(
        &mut self,
        write: impl FnOnce(Sink) -> CacheResult<Sink>,
    ) -> CacheResult<PathBuf> {
        let shard = self.path.join(format!("part-{:09}.{}", self.next, self.ending));
        let mut digest = None;
        let write = Box::new(|sink: Sink| {
            let sink = write(sink.hashing())?;
            digest = sink.digest();
            Ok(sink)
        });
        let store = store_at(&shard)?;
        let written = store.write(&self.path, Size::Small, Replaces::Nothing, write);
        match (written, digest) {
            (Ok(_), _) => {
                self.next += 1;
                self.known.push(shard.clone());
                Ok(shard)
            }
            (Err(CacheError::Conflict { .. }), _) => {
                Err(CacheError::Conflict { path: self.output.clone() })
            }
            (Err(error), Some(digest)) => {
                // It may be there, only the answer was lost: the next one gets another number.
                self.next += 1;
                self.unsure.push((shard, digest));
                Err(error)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Removes what a killed process was in the middle of writing.
    pub(crate) fn remove_temporary(&self) -> CacheResult<()> {
        self.folders().iter().try_for_each(|folder| store_at(folder)?.remove_temporary())
    }

    /// Why the shards may not be resumed, if an earlier run rejected them.
    pub(crate) fn rejected(&self) -> CacheResult<Option<String>> {
        for folder in self.folders() {
            if let Some(reason) = storage::read_file(&folder.join(REJECTED))? {
                return Ok(Some(String::from_utf8_lossy(&reason).into_owned()));
            }
        }
        Ok(None)
    }

    /// Marks the shards as not to be resumed.
    pub(crate) fn reject(&self, reason: &str) -> CacheResult<()> {
        storage::write_file(&self.path.join(REJECTED), reason.as_bytes())
    }

    /// Removes all shards, and the mark of rejection. What could not be removed is tried again when the
    /// folder is.
    pub(crate) fn clear(&mut self) -> CacheResult<()> {
        while let Some(shard) = self.known.last() {
            storage::remove_file(shard)?;
            self.known.pop();
        }
        while let Some((shard, digest)) = self.unsure.last() {
            // Another writer may have one of this number.
            let ours = |bytes: Vec<u8>| blake3::hash(&bytes) == *digest;
            if storage::read_file(shard)?.is_some_and(ours) {
                storage::remove_file(shard)?;
            }
            self.unsure.pop();
        }
        self.remove_rows_but(|_| false)?;
        for folder in self.folders() {
            if storage::read_file(&folder.join(REJECTED))?.is_some() {
                storage::remove_file(&folder.join(REJECTED))?;
            }
        }
        Ok(())
    }

    /// Removes the folder with everything in it that a writer or a run put there.
    pub(crate) fn remove(&mut self) -> CacheResult<()> {
        self.clear()?;
        let mut endings = vec![JOURNAL];
        if self.is_local() {
            endings.push(storage::TEMPORARY);
        }
        for folder in self.folders() {
            for ending in &endings {
                let files = storage::list(&folder, ending)?;
                files.iter().try_for_each(|file| storage::remove_file(file))?;
            }
        }
        self.unlock()
    }

    /// Gives up the locks, and removes the folders if nothing is left in them.
    fn unlock(&mut self) -> CacheResult<()> {
        let locks = self.older.take().map(|older| older.lock).into_iter().chain(self.lock.take());
        let removed: Vec<CacheResult<()>> = locks.map(Lock::remove).collect();
        removed.into_iter().collect()
    }
}

/// `OUTPUT.partial`.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(PARTIAL);
    PathBuf::from(name)
}

/// The number of a shard; `None` for a file that is none.
fn number(shard: &Path) -> Option<u64> {
    shard.file_stem()?.to_str()?.strip_prefix("part-")?.parse().ok()
}

impl Drop for WorkFolder {
    /// Leaves no folder behind that holds nothing but the lock.
    fn drop(&mut self) {
        if self.lock.is_none() {
            return;
        }
        if self.known.is_empty() && self.rejected().is_ok_and(|rejected| rejected.is_none()) {
            // Nothing of value is lost if one fails: the next run finds an unlocked lock file.
            let _ = self.remove_rows_but(|_| false);
            let _ = self.unlock();
        }
    }
}
