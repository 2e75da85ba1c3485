//! Writing a cache: rows are checked, checkpointed as shards, and merged into one file at the end.
//!
//! Killed at any instant, the output is the former one or a complete one, and the next writer of
//! the same output and identity goes on after the last checkpoint. A checkpoint writes only the
//! rows that came since the one before; on this machine into the file that becomes the output, so
//! that a run that nothing interrupts writes them once.

mod commit;
mod growing;
mod merge;
mod opening;
mod read_back;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow_array::StringArray;
use serde_json::Value;

use super::error::{CacheError, CacheResult};
use super::file_writer::FileWriter;
use super::footer::{Footer, StateKey};
use super::identity::Identity;
use super::parts::{open_files, same_tokens};
use super::row_check::{BadRow, RowChecker};
use super::row_file::RowFile;
use super::schema::{FORMAT_VERSION, ROW_GROUP_ROWS};
use super::storage::{self, Replaces, Version};
use super::work_folder::WorkFolder;
use growing::Growing;

/// When to checkpoint, and what to do with an output that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What became of a row given to [`CacheWriter::append`].
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It will be in the cache.
    Accepted,
    /// The cache has a row of this state already; this one was set aside.
    Present,
    /// It fails the row checks and was not taken.
    Bad(BadRow),
}

/// What [`CacheWriter::finish`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishReport {
    /// Rows in the finished cache.
    pub rows: u64,
    /// Rows left out because their norm is far from that of all others, with the reason.
    pub left_out: Vec<(String, BadRow)>,
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
    /// Takes the lock.
    ///
    /// # Errors
    /// [`CacheError::Locked`] if another process has it; [`CacheError::Io`].
    pub fn acquire(output: impl AsRef<Path>) -> CacheResult<Self> {
        let output = storage::output_path(output.as_ref())?;
        Ok(Self { folder: WorkFolder::lock(&output)?, output })
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
    /// Sources up to and with the last checkpoint of the growing file; those after it are small.
    grown: usize,
    growing: Option<Growing>,
    /// The former output's version, or that of its manifest.
    version: Option<Version>,
    /// Rows of all sources and then those pending, good or bad.
    total: u64,
    /// The row that counts for each state.
    current: HashMap<StateKey, u64>,
    checker: RowChecker,
    pending_states: Vec<String>,
    pending_values: Vec<f32>,
    last_checkpoint: Instant,
    discarded: Vec<String>,
}

impl CacheWriter {
    /// Offers rows (`rows` is `states.len() x dim`, row-major); the good ones will be in the cache.
    ///
    /// Checkpoints when it is time. Returns one verdict per row.
    ///
    /// # Errors
    /// [`CacheError::Argument`] if the lengths do not fit; [`CacheError::Io`] if a checkpoint cannot
    /// be written, after which earlier checkpoints still stand.
    pub fn append(&mut self, states: &[&str], rows: &[f32]) -> CacheResult<Vec<Verdict>> {
        let dim = self.dim;
        if rows.len() != states.len() * dim {
            let (found, states) = (rows.len(), states.len());
            let message = format!("{states} states of {dim} values each, but {found} values");
            return Err(CacheError::Argument(message));
        }
        let mut verdicts = vec![Verdict::Present; states.len()];
        let mut offered = HashSet::new();
        let mut new = Vec::new();
        for (i, state) in states.iter().enumerate() {
            let key = StateKey::of(state);
            if !self.current.contains_key(&key) && offered.insert(key) {
                new.push((i, key));
            }
        }
        let row = |i: usize| &rows[i * dim..(i + 1) * dim];
        let keys: Vec<StateKey> = new.iter().map(|(_, key)| *key).collect();
        let checked = if new.len() == states.len() {
            self.checker.check(&keys, rows)
        } else {
            let gathered: Vec<f32> = new.iter().flat_map(|(i, _)| row(*i)).copied().collect();
            self.checker.check(&keys, &gathered)
        };
        for ((i, key), checked) in new.into_iter().zip(checked) {
            verdicts[i] = match checked {
                Ok(()) => {
                    self.current.insert(key, self.total);
                    self.total += 1;
                    self.pending_states.push(states[i].to_owned());
                    self.pending_values.extend_from_slice(row(i));
                    Verdict::Accepted
                }
                Err(reason) => Verdict::Bad(reason),
            };
        }
        let overdue = self.last_checkpoint.elapsed() >= self.options.checkpoint_interval;
        if overdue || self.pending_states.len() >= self.options.checkpoint_rows {
            self.save(overdue)?;
        }
        Ok(verdicts)
    }

    /// Takes rows of the wanted states from an earlier cache of the same identity.
    ///
    /// Returns how many were taken; rows that fail the checks are not, and are encoded anew.
    ///
    /// # Errors
    /// [`CacheError::IdentityMismatch`], or whatever keeps the cache from being read or written.
    pub fn adopt(&mut self, cache: impl AsRef<Path>, wanted: &[&str]) -> CacheResult<u64> {
        let files = open_files(cache.as_ref())?;
        files.iter().try_for_each(|file| self.require(file))?;
        for (left, right) in same_tokens(&files)?.key_pairs() {
            self.checker.allow_equal(left, right);
        }
        let wanted: HashSet<&str> = wanted.iter().copied().collect();
        let mut taken = 0;
        for file in &files {
            file.for_each(|rows| {
                let mut states = Vec::new();
                let mut values = Vec::new();
                for (state, row) in rows.states.iter().flatten().zip(rows.values.chunks(self.dim)) {
                    if wanted.contains(state) {
                        states.push(state);
                        values.extend_from_slice(row);
                    }
                }
                let verdicts = self.append(&states, &values)?;
                taken += verdicts.iter().filter(|v| **v == Verdict::Accepted).count() as u64;
                Ok(())
            })?;
        }
        Ok(taken)
    }

    /// Notes that two states have the same tokens, so that their rows are rightly equal.
    pub fn allow_equal(&mut self, left: &str, right: &str) {
        self.allow_equal_keys(StateKey::of(left), StateKey::of(right));
    }

    pub(crate) fn allow_equal_keys(&mut self, left: StateKey, right: StateKey) {
        self.checker.allow_equal(left, right);
    }

    /// A copy of what is known of the rows so far: a search checks its rows against it.
    pub(crate) fn row_checker(&self) -> RowChecker {
        self.checker.clone()
    }

    /// Takes a row back that was accepted earlier; returns whether there was one.
    pub fn retract(&mut self, state: &str) -> bool {
        let key = StateKey::of(state);
        self.checker.retract(key);
        self.current.remove(&key).is_some()
    }

    /// Whether the cache will have a row of this state.
    #[must_use]
    pub fn contains(&self, state: &str) -> bool {
        self.current.contains_key(&StateKey::of(state))
    }

    /// Whether the row of this state is one of the former output's.
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
        if rows == 0 {
            return Ok(());
        }
        let footer = self.footer(rows as u64, Value::Null);
        let shard = self.folder.write_shard(|sink| {
            let mut file = FileWriter::new(sink, self.dim)?;
            let states = StringArray::from_iter_values(&self.pending_states[..rows]);
            file.append(&states, &self.pending_values[..rows * self.dim])?;
            file.close(&footer)
        })?;
        let first = self.total - pending as u64;
        self.sources.push(Source { file: RowFile::open_source(&shard)?, first });
        self.forget_pending(rows);
        Ok(())
    }

    /// Forgets the first of the pending rows, which are in a source now.
    fn forget_pending(&mut self, rows: usize) {
        self.pending_states.drain(..rows);
        self.pending_values.drain(..rows * self.dim);
    }

    /// Merges everything into the output, in one atomic step, and removes the shards.
    ///
    /// # Errors
    /// [`CacheError::Io`]; the former output and the shards then still stand.
    pub fn finish(mut self, provenance: Value) -> CacheResult<FinishReport> {
        self.checkpoint()?;
        let left_out = self.norm_outliers()?;
        for (state, _) in &left_out {
            self.retract(state);
        }
        let rows = self.current.len() as u64;
        let changed = rows != self.former || self.total != self.former;
        let parts = storage::is_folder_output(&self.output)?;
        let present = storage::version(&self.output)?;
        let missing = if parts { self.former_sources == 0 } else { present.is_none() };
        let written = changed || self.options.overwrite || self.options.compact || missing;
        if written && parts {
            self.add_part(provenance)?;
        } else if written && let Some((file, path, _)) = self.complete(0, &provenance)? {
            storage::put_in_place(file, &path)?;
        } else if written {
            let temporary_in = self.folder.path();
            storage::write_atomically(temporary_in, &self.output, Replaces::Anything, |sink| {
                let (sink, _) = self.merge(&self.sources, sink, provenance)?;
                // Here, just before it is replaced; on this machine the lock keeps others away.
                let remote = storage::is_remote(&self.output)?;
                if remote && storage::version(&self.output)? != self.version {
                    return Err(CacheError::Locked { path: self.output.clone() });
                }
                Ok(sink)
            })?;
        }
        self.folder.remove()?;
        Ok(FinishReport { rows, left_out, written })
    }

    /// Marks the checkpointed rows as wrong: no later run will resume from them.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn reject(mut self, reason: &str) -> CacheResult<()> {
        self.checkpoint()?;
        self.folder.reject(reason)
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

    fn footer(&self, rows: u64, provenance: Value) -> Footer {
        Footer {
            format_version: FORMAT_VERSION,
            dim: self.dim,
            rows,
            identity: self.identity.clone(),
            provenance,
            same_tokens: self.checker.same_tokens().pairs(),
        }
    }
}
