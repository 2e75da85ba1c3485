//! The folder beside an unfinished output: the lock, the checkpointed shards, the merged file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::error::{CacheError, CacheResult};
use super::lock::try_lock;
use super::parts::PARQUET;
use super::storage::{self, Kind, Place, Replaces, Sink, place_of};

const LOCK: &str = "lock";
const REJECTED: &str = "REJECTED";
/// How the names of files end that grow until they are the output.
const ROWS: &str = "rows";
/// How the names of lists end that a run keeps here until it is finished.
const JOURNAL: &str = "jsonl";

/// `OUTPUT.partial`, locked for this process.
///
/// Object stores have no locks that end with their process. There, shards are numbered, and one with a
/// number that is taken is refused: so of two writers at once one gives up, and nothing is left behind
/// by a process that died.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    output: PathBuf,
    lock: Option<File>,
    /// Number of the next shard.
    next: u64,
    /// The shards that were there, and those written since: others are another writer's.
    known: Vec<PathBuf>,
}

impl WorkFolder {
    /// Makes the folder beside `output` and locks it.
    pub(super) fn lock(output: &Path) -> CacheResult<Self> {
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let lock = if storage::is_remote(&path)? {
            None
        } else {
            fs::create_dir_all(&path).map_err(|error| CacheError::io(&path, "create", error))?;
            let lock = try_lock(&path.join(LOCK))?;
            Some(lock.ok_or_else(|| CacheError::Locked { path: output.to_owned() })?)
        };
        let known = if storage::kind(&path)? == Kind::Folder {
            storage::list(&path, PARQUET)?
        } else {
            Vec::new()
        };
        let next = known.last().and_then(|path| number(path)).map_or(0, |n| n + 1);
        Ok(Self { path, output: output.to_owned(), lock, next, known })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The finished shards, in the order in which they were written.
    pub(super) fn shards(&self) -> &[PathBuf] {
        &self.known
    }

    /// Removes a shard.
    pub(super) fn remove_shard(&mut self, shard: &Path) -> CacheResult<()> {
        storage::remove(shard)?;
        self.known.retain(|known| known != shard);
        Ok(())
    }

    /// Whether it is on this machine, where a file may grow.
    pub(super) fn is_local(&self) -> bool {
        self.lock.is_some()
    }

    /// A path for a file that grows, which no shard's rows are in.
    pub(super) fn next_rows(&self) -> PathBuf {
        self.path.join(format!("part-{:09}.{ROWS}", self.next))
    }

    /// Removes the files with rows that no shard is the footer of.
    pub(super) fn remove_rows_but(&self, kept: impl Fn(&Path) -> bool) -> CacheResult<()> {
        if !self.is_local() {
            return Ok(());
        }
        let files = storage::list(&self.path, ROWS)?;
        files.iter().filter(|file| !kept(file)).try_for_each(|file| storage::remove(file))
    }

    /// Writes the shard after those that exist, and returns its path.
    ///
    /// # Errors
    /// [`CacheError::Locked`] if another process wrote one of this number.
    pub(super) fn write_shard(
        &mut self,
        write: impl FnOnce(Sink) -> CacheResult<Sink>,
    ) -> CacheResult<PathBuf> {
        let shard = self.path.join(format!("part-{:09}.parquet", self.next));
        match storage::write_atomically(&self.path, &shard, Replaces::Nothing, write) {
            Err(CacheError::Locked { .. }) => {
                return Err(CacheError::Locked { path: self.output.clone() });
            }
            written => written?,
        };
        self.next += 1;
        self.known.push(shard.clone());
        Ok(shard)
    }

    /// Removes what a killed process was in the middle of writing.
    pub(super) fn remove_temporary(&self) -> CacheResult<()> {
        storage::remove_temporary(&self.path)
    }

    /// Why the shards may not be resumed, if an earlier run rejected them.
    pub(super) fn rejected(&self) -> CacheResult<Option<String>> {
        let reason = storage::read_file(&self.path.join(REJECTED))?;
        Ok(reason.map(|reason| String::from_utf8_lossy(&reason).into_owned()))
    }

    /// Marks the shards as not to be resumed.
    pub(super) fn reject(&self, reason: &str) -> CacheResult<()> {
        storage::write_file(&self.path.join(REJECTED), reason.as_bytes())
    }

    /// Removes all shards, and the mark of rejection.
    pub(super) fn clear(&mut self) -> CacheResult<()> {
        std::mem::take(&mut self.known).iter().try_for_each(|file| storage::remove(file))?;
        self.remove_rows_but(|_| false)?;
        if self.rejected()?.is_some() {
            storage::remove(&self.path.join(REJECTED))?;
        }
        Ok(())
    }

    /// Removes the folder with everything in it; in a store, what is this writer's.
    pub(super) fn remove(&mut self) -> CacheResult<()> {
        if self.lock.is_some() {
            self.known.clear();
            return storage::remove_folder(&self.path);
        }
        let journals = storage::list(&self.path, JOURNAL)?;
        self.clear()?;
        journals.iter().try_for_each(|file| storage::remove(file))
    }
}

/// The number of a shard.
fn number(shard: &Path) -> Option<u64> {
    shard.file_stem()?.to_str()?.strip_prefix("part-")?.parse().ok()
}

impl Drop for WorkFolder {
    /// Leaves no folder behind that holds nothing but the lock.
    fn drop(&mut self) {
        let (Some(_), Ok(Place::Local(path))) = (&self.lock, place_of(&self.path)) else { return };
        if self.known.is_empty() && self.rejected().is_ok_and(|rejected| rejected.is_none()) {
            // Nothing of value is lost if one fails: the next run finds an unlocked lock file.
            let _ = self.remove_rows_but(|_| false);
            let _ = fs::remove_file(path.join(LOCK));
            let _ = fs::remove_dir(&path);
        }
    }
}
