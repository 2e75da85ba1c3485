//! Opening a writer: what an earlier run left is taken up, or refused.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::footers::KnownPairs;
use super::merge::parquet_files;
use super::{CacheWriter, OutputLock, Source, WriterOptions};
use crate::check::row_check::RowChecker;
use crate::file::reader::RowFile;
use crate::file::rows::Rows;
use crate::folder::manifest::Manifest;
use crate::folder::parts::{open_source_files, same_tokens};
use crate::format::bad_row::BadRow;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::format::identity::{Identity, differences};
use crate::format::same_identity::require_same;
use crate::format::schema::PARQUET;
use crate::storage::input::Input;
use crate::storage::{self, Kind, store_at};

/// Whose rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    FormerOutput,
    Checkpoint,
}

/// Opens a file with the rows of several checkpoints.
fn open_once(opened: &mut HashMap<PathBuf, Input>, rows: &Path) -> CacheResult<Input> {
    if let Some(input) = opened.get(rows) {
        return Ok(input.clone());
    }
    let input = store_at(rows)?.open()?;
    opened.insert(rows.to_owned(), input.clone());
    Ok(input)
}

impl CacheWriter {
    pub(super) fn open(
        lock: OutputLock,
        identity: Identity,
        dim: usize,
        options: WriterOptions,
    ) -> CacheResult<Self> {
        let OutputLock { output, mut folder } = lock;
        folder.remove_temporary()?;
        if let Some(detail) = folder.rejected()? {
            if !options.overwrite {
                return Err(CacheError::Rejected { path: folder.path().to_owned(), detail });
            }
            folder.clear()?;
        }
        let mut writer = Self {
            output,
            folder,
            identity,
            dim,
            options,
            sources: Vec::new(),
            former: 0,
            former_sources: 0,
            former_files: Vec::new(),
            grown: 0,
            growing: None,
            unsure: None,
            version: None,
            total: 0,
            current: HashMap::new(),
            checker: RowChecker::new(dim),
            origins: Vec::new(),
            known_pairs: KnownPairs::default(),
            taken_back: Vec::new(),
            withdrawn: HashSet::new(),
            unsaved_withdrawals: false,
            left_out: Vec::new(),
            outliers: HashSet::new(),
            repeats: 0,
            pending_states: Vec::new(),
            pending_values: Vec::new(),
            last_checkpoint: Instant::now(),
            discarded: Vec::new(),
        };
        writer.begin_own_rows();
        writer.take_up()?;
        Ok(writer)
    }

    /// Takes up the former output and the shards of an interrupted run.
    fn take_up(&mut self) -> CacheResult<()> {
        self.version = match storage::kind(&self.output)? {
            Kind::Folder => Manifest::read(&self.output)?.map(|(_, version)| version),
            _ => store_at(&self.output)?.version()?,
        };
        self.former_files = parquet_files(&self.output)?;
        if !self.options.overwrite {
            for file in self.former_files()? {
                self.require(&file)?;
                self.add_source(file, From::FormerOutput)?;
            }
            self.former = self.total;
            self.former_sources = self.sources.len();
        }
        let pairs = self.checker.same_tokens().len();
        self.known_pairs = KnownPairs { output: pairs, grown: pairs, saved: pairs };
        let mut opened = HashMap::new();
        for path in self.folder.shards().to_vec() {
            let shard = RowFile::open_checkpoint(&path, |rows| open_once(&mut opened, rows));
            match shard.and_then(|file| self.add_shard(file)) {
                Err(error @ (CacheError::Format { .. } | CacheError::Row { .. })) => {
                    // Its rows are re-encoded; a shard holds nothing else.
                    self.folder.remove_shard(&path)?;
                    self.discarded.push(error.to_string());
                }
                // The file of its rows became the output, or somebody removed it.
                Err(error @ CacheError::NotFound { .. }) => {
                    self.folder.remove_shard(&path)?;
                    if self.former == 0 {
                        self.discarded.push(error.to_string());
                    }
                }
                other => other?,
            }
        }
        self.grown = self.sources.len();
        let pairs = self.checker.same_tokens().len();
        (self.known_pairs.grown, self.known_pairs.saved) = (pairs, pairs);
        self.folder.remove_rows_but(|rows| opened.contains_key(rows))
    }

    /// What the output consists of so far.
    fn former_files(&self) -> CacheResult<Vec<RowFile>> {
        match storage::kind(&self.output)? {
            Kind::Missing => return Ok(Vec::new()),
            Kind::File => {}
            Kind::Folder => {
                if let Some((manifest, _)) = Manifest::read(&self.output)? {
                    manifest.remove_superseded(&self.output)?;
                } else if storage::list(&self.output, PARQUET)?.is_empty() {
                    return Ok(Vec::new());
                }
            }
        }
        open_source_files(&self.output)
    }

    fn add_shard(&mut self, file: RowFile) -> CacheResult<()> {
        let made_by = file.footer().map(|footer| &footer.identity);
        if self.options.overwrite && !differences(Some(&self.identity), made_by).is_empty() {
            return self.folder.remove_shard(file.path());
        }
        self.require(&file)?;
        let withdraws = file.footer().is_some_and(|footer| !footer.taken_back.is_empty());
        if self.add_source(file, From::Checkpoint)? == 0
            && !withdraws
            && let Some(source) = self.sources.pop()
        {
            // All its rows are the output's: a run ended after it had shown them.
            self.total = source.first;
            self.forget_runs_from(self.total);
            self.begin_own_rows();
            self.folder.remove_shard(source.file.path())?;
        }
        Ok(())
    }

    pub(super) fn require(&self, file: &RowFile) -> CacheResult<()> {
        self.require_from(file, &self.identity)
    }

    /// Refuses a file of another encoder than `expected`, or of another width.
    pub(super) fn require_from(&self, file: &RowFile, expected: &Identity) -> CacheResult<()> {
        let made_by = file.footer().map(|footer| &footer.identity);
        require_same(file.path(), made_by, Some(expected), "the encoder of this run")?;
        if file.dim() != self.dim {
            let (found, dim) = (file.dim(), self.dim);
            let detail = format!("rows have {found} values, this encoder's {dim}");
            return Err(CacheError::format(file.path(), detail));
        }
        Ok(())
    }

    /// Checks the rows of a file and makes those part of the output that are good and not part of it
    /// already; returns how many. Of two good embeddings of a state the later wins.
    fn add_source(&mut self, file: RowFile, from: From) -> CacheResult<u64> {
        // Read to the end before anything counts, so that a damaged file leaves no trace.
        file.for_each(|_| Ok(()))?;
        for (left, right) in same_tokens(std::slice::from_ref(&file))?.key_pairs() {
            self.checker.allow_equal(left, right);
        }
        let (first, mut taken) = (self.total, 0);
        self.note_runs(&file, first, from == From::Checkpoint);
        if let (From::Checkpoint, Some(footer)) = (from, file.footer()) {
            let keys = footer.taken_back.iter().filter_map(|key| StateKey::from_hex(key));
            keys.for_each(|key| self.take_back(key));
        }
        let dead = file.footer().filter(|_| from == From::Checkpoint).map(|footer| &footer.dead);
        let dead: HashSet<u64> = dead.into_iter().flatten().map(|row| first + row).collect();
        file.for_each(|Rows { states, values }| {
            let keys: Vec<StateKey> = states.iter().flatten().map(StateKey::of).collect();
            let row = |row: usize| &values[row * self.dim..(row + 1) * self.dim];
            // What a run saved of a state that the output has got since is not needed.
            let live = (0..keys.len()).filter(|row| !dead.contains(&(self.total + *row as u64)));
            let (there, new): (Vec<usize>, Vec<usize>) = live.partition(|row| {
                self.current.get(&keys[*row]).is_some_and(|number| *number < self.former)
            });
            let mut left_out: Vec<(usize, BadRow)> = there
                .iter()
                .filter_map(|i| Some((*i, self.checker.conflict(keys[*i], row(*i))?)))
                .collect();
            let checked: Vec<StateKey> = new.iter().map(|row| keys[*row]).collect();
            let verdicts = if new.len() == keys.len() {
                self.checker.check_later(&checked, &values)
            } else {
                let values: Vec<f32> = new.iter().flat_map(|i| row(*i)).copied().collect();
                self.checker.check_later(&checked, &values)
            };
            for ((row, key), verdict) in new.into_iter().zip(checked).zip(verdicts) {
                match verdict {
                    Ok(conflict) => {
                        taken += 1;
                        let repeated = self.current.insert(key, self.total + row as u64).is_some();
                        if from == From::Checkpoint {
                            // The run before took the earlier row back before it saved another.
                            self.checker.retract_earlier(key);
                        } else if let Some(conflict) = conflict {
                            left_out.push((row, conflict));
                        } else {
                            self.repeats += u64::from(repeated);
                        }
                    }
                    Err(reason) => left_out.push((row, reason)),
                }
            }
            for (row, reason) in left_out {
                self.leave_out(states.value(row).to_owned(), reason);
            }
            self.total += keys.len() as u64;
            Ok(())
        })?;
        self.unsaved_withdrawals = false;
        self.sources.push(Source { file, first });
        Ok(taken)
    }
}
