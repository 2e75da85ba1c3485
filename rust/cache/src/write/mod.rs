//! Writing a cache: rows are checked, checkpointed as shards, and merged into one file at the end.
//!
//! Killed at any instant, the output is the former one or a complete one, and the next writer of
//! the same output and identity resumes after the last checkpoint. A checkpoint writes only the
//! rows that came since the one before; on this machine into the file that becomes the output, so
//! that a run that nothing interrupts writes them once.

mod adding;
mod commit;
pub(crate) mod compact;
mod finish;
mod footers;
mod growing;
mod left_out;
mod merge;
mod opening;
mod read_back;
pub(crate) mod work_folder;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow_array::StringArray;

use crate::check::row_check::RowChecker;
use crate::file::reader::RowFile;
use crate::file::writer::FileWriter;
use crate::format::bad_row::BadRow;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::format::identity::Identity;
use crate::format::schema::ROW_GROUP_ROWS;
use crate::storage::{self, Version};
use crate::write::work_folder::WorkFolder;
use commit::NewPart;
use footers::{KnownPairs, Origin};
use growing::Growing;

/// When to checkpoint, and what to do with an output that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterOptions {
    /// Checkpoint when there are this many new rows: those that make whole row groups, if any do.
    pub checkpoint_rows: usize,
    /// Checkpoint when this much time has passed since the last one.
    pub checkpoint_interval: Duration,
    /// Replace an existing output, whatever its identity, instead of adding to it.
    pub overwrite: bool,
    /// Write all parts of a folder as one, even if no row is new.
    pub compact: bool,
}

impl Default for WriterOptions {
    fn default() -> Self {
        let checkpoint_interval = Duration::from_secs(60);
        Self { checkpoint_rows: 2000, checkpoint_interval, overwrite: false, compact: false }
    }
}

impl WriterOptions {
    /// Sets after how many new rows to checkpoint.
    #[must_use]
    pub fn with_checkpoint_rows(self, checkpoint_rows: usize) -> Self {
        Self { checkpoint_rows, ..self }
    }

    /// Sets after how much time to checkpoint.
    #[must_use]
    pub fn with_checkpoint_interval(self, checkpoint_interval: Duration) -> Self {
        Self { checkpoint_interval, ..self }
    }

    /// Sets whether an existing output is replaced.
    #[must_use]
    pub fn with_overwrite(self, overwrite: bool) -> Self {
        Self { overwrite, ..self }
    }

    /// Sets whether all parts of a folder are written as one.
    #[must_use]
    pub fn with_compact(self, compact: bool) -> Self {
        Self { compact, ..self }
    }
}

/// What became of a row given to [`CacheWriter::append`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It will be in the cache.
    Accepted,
    /// The cache has an embedding of this state already; this one was set aside.
    Present,
    /// It fails the row checks and was not taken.
    Bad(BadRow),
}

/// What [`CacheWriter::finish`] did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FinishReport {
    /// Rows in the finished cache.
    pub rows: u64,
    /// Rows that were stored and proved bad, of states that have no row now, with the reason: rows of
    /// the former output, of an interrupted run, and rows whose norm is far from that of all others.
    ///
    /// Those of the former output are in it still, unless it was rewritten; where it is a folder,
    /// [`compact`](crate::write::compact) takes them out.
    pub left_out: Vec<(String, BadRow)>,
    /// Likewise, of states that have a good row instead.
    pub replaced: Vec<(String, BadRow)>,
    /// Rows in whose place a later one of the same state counts that agrees with them.
    pub repeats: u64,
    /// Whether the file was written; not if nothing was to be added to it.
    pub written: bool,
}

/// The exclusive right to write an output, before anything is known of what will be written.
///
/// Released when dropped, or by the system when the process dies.
#[derive(Debug)]
pub struct OutputLock {
    output: PathBuf,
    folder: WorkFolder,
}

impl OutputLock {
    /// Takes the lock. However the output is spelled (relative, with `.`, `..`, links or slashes), it is
    /// one output with one lock.
    ///
    /// # Errors
    /// [`CacheError::Locked`] if another process has it; [`CacheError::Argument`] for an empty path, or
    /// one that can be no output; [`CacheError::Io`].
    pub fn acquire(output: impl AsRef<Path>) -> CacheResult<Self> {
        let output = storage::resolve_output(output.as_ref())?;
        Ok(Self { folder: WorkFolder::lock(&output)?, output })
    }

    /// The output's one name: absolute and without links, or a URL.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Opens the output for rows of an encoder, taking up what an earlier run left.
    ///
    /// # Errors
    /// [`CacheError::IdentityMismatch`] if rows of another encoder are there and may not be
    /// overwritten; [`CacheError::Rejected`]; and whatever keeps the existing output from being read.
    pub fn open(
        self,
        identity: Identity,
        dim: usize,
        options: WriterOptions,
    ) -> CacheResult<CacheWriter> {
        if dim == 0 {
            return Err(CacheError::Argument("a cache's rows need at least one value".to_owned()));
        }
        CacheWriter::open(self, identity, dim, options)
    }
}

/// A file whose rows are part of the output to be: the former output, or a shard.
#[derive(Debug)]
struct Source {
    file: RowFile,
    /// Number of its first row among the rows of all sources.
    first: u64,
}

/// Writes one cache: a file, or a new part of a folder that exists. See the module's documentation for what it promises.
#[derive(Debug)]
pub struct CacheWriter {
    output: PathBuf,
    folder: WorkFolder,
    identity: Identity,
    dim: usize,
    options: WriterOptions,
    sources: Vec<Source>,
    /// Rows of the former output, which come before all others.
    former: u64,
    /// Files of the former output, which come before all other sources.
    former_sources: usize,
    /// The Parquet files that a folder had when it was opened.
    former_files: Vec<String>,
    /// Sources up to and with the last checkpoint of the growing file; those after it are small.
    grown: usize,
    growing: Option<Growing>,
    /// A part of which it is not known whether the manifest lists it.
    unsure: Option<NewPart>,
    /// The former output's version, or that of its manifest.
    version: Option<Version>,
    /// Rows of all sources and then those pending, good or bad.
    total: u64,
    /// The row that counts for each state.
    current: HashMap<StateKey, u64>,
    checker: RowChecker,
    /// Who made the rows, by number, ascending.
    origins: Vec<Origin>,
    known_pairs: KnownPairs,
    /// States of which the caller took back the former output's row.
    taken_back: Vec<StateKey>,
    /// All states of which a row was taken back, the former output's or a later one.
    withdrawn: HashSet<StateKey>,
    /// Whether a checkpoint is to say so still.
    unsaved_withdrawals: bool,
    /// Stored rows that are not kept, with the reason.
    left_out: Vec<(String, BadRow)>,
    /// States of which such a row stays in the output, for its norm.
    outliers: HashSet<StateKey>,
    /// Stored rows in whose place a later one counts that agrees with them.
    repeats: u64,
    pending_states: Vec<String>,
    pending_values: Vec<f32>,
    last_checkpoint: Instant,
    discarded: Vec<String>,
}

impl CacheWriter {
    /// Whether the cache will have an embedding of this state.
    #[must_use]
    pub fn contains(&self, state: &str) -> bool {
        self.current.contains_key(&StateKey::of(state))
    }

    /// Whether the embedding of this state is one of the former output's.
    #[must_use]
    pub fn is_former(&self, state: &str) -> bool {
        self.current.get(&StateKey::of(state)).is_some_and(|number| *number < self.former)
    }

    /// Accepted states whose norm proved far from that of all others, with the reason.
    ///
    /// # Errors
    /// Whatever keeps a shard from being read.
    pub fn norm_outliers(&self) -> CacheResult<Vec<(String, BadRow)>> {
        let outliers = self.checker.norm_outliers().into_iter();
        let stored = outliers.map(|outlier| Ok((self.stored(outlier.state)?, outlier.reason)));
        let stored: Vec<_> = stored.collect::<CacheResult<_>>()?;
        Ok(stored.into_iter().filter_map(|(row, reason)| Some((row?.0, reason))).collect())
    }

    /// Writes the rows since the last checkpoint to the disk; after this a crash cannot lose them.
    ///
    /// # Errors
    /// [`CacheError::Io`], after which earlier checkpoints still stand.
    pub fn checkpoint(&mut self) -> CacheResult<()> {
        self.save(true)
    }

    /// Writes the pending rows, or as many of them as make whole row groups.
    fn save(&mut self, all: bool) -> CacheResult<()> {
        self.last_checkpoint = Instant::now();
        let grown = self.grow()?;
        let pending = self.pending_states.len();
        let whole = pending - pending % ROW_GROUP_ROWS;
        let rows = if all || (whole == 0 && !grown) { pending } else { whole };
        if rows == 0 && !(all && self.unsaved_withdrawals) {
            return Ok(());
        }
        let first = self.total - pending as u64;
        let states = self.pending_states[..rows].iter().map(String::as_str);
        let footer = self.shard_footer(first..first + rows as u64, states, self.known_pairs.saved);
        let shard = self.folder.write_shard(|sink| {
            let mut file = FileWriter::new(sink, self.dim)?;
            if rows > 0 {
                let states = StringArray::from_iter_values(&self.pending_states[..rows]);
                file.append(&states, &self.pending_values[..rows * self.dim])?;
            }
            file.close(&footer)
        })?;
        self.unsaved_withdrawals = false;
        self.known_pairs.saved = self.checker.same_tokens().len();
        let file = RowFile::open_source(&shard).map_err(|error| self.overtaken(error))?;
        self.sources.push(Source { file, first });
        self.forget_pending(rows);
        Ok(())
    }

    /// Forgets the first of the pending rows, which are in a source now.
    fn forget_pending(&mut self, rows: usize) {
        self.pending_states.drain(..rows);
        self.pending_values.drain(..rows * self.dim);
    }

    /// Rows the cache will have.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// Whether the cache has no row yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Damaged shards of an interrupted run that were removed, each with what was wrong with it.
    #[must_use]
    pub fn discarded(&self) -> &[String] {
        &self.discarded
    }

    /// The folder with the checkpoints, which is removed in the end.
    #[must_use]
    pub fn work_folder(&self) -> &Path {
        self.folder.path()
    }
}
