//! Rows that are offered, adopted and taken back.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use arrow_array::Array;

use super::{CacheWriter, Verdict};
use crate::check::row_check::RowChecker;
use crate::file::reader::RowFile;
use crate::file::rows::Rows;
use crate::folder::parts::{open_files, same_tokens};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::{Footer, StateKey};
use crate::format::identity::Identity;

/// Of each wanted state, the file and row of the last of its rows: the one that readers find.
type LastRows = HashMap<StateKey, (usize, u64)>;

impl CacheWriter {
    /// Offers rows (`rows` is `states.len() x dim`, row-major); the good ones will be in the cache.
    ///
    /// If a state is there several times, its first good row is taken. Checkpoints when it is time.
    /// Returns one verdict per row. Norms are compared with those of the rows so far; once all are there,
    /// [`CacheWriter::norm_outliers`] compares them with each other.
    ///
    /// # Errors
    /// [`CacheError::Argument`] if the lengths do not fit; [`CacheError::Io`] if a checkpoint cannot
    /// be written, after which earlier checkpoints still stand.
    pub fn append(&mut self, states: &[&str], rows: &[f32]) -> CacheResult<Vec<Verdict>> {
        if states.len().checked_mul(self.dim) != Some(rows.len()) {
            let (found, states, dim) = (rows.len(), states.len(), self.dim);
            let message = format!("{states} states of {dim} values each, but {found} values");
            return Err(CacheError::Argument(message));
        }
        self.settle()?;
        let mut verdicts = vec![Verdict::Present; states.len()];
        let keys: Vec<StateKey> = states.iter().map(|state| StateKey::of(state)).collect();
        let mut offered: Vec<usize> = (0..states.len()).collect();
        // A state's second row is looked at once its first has proved bad.
        while !offered.is_empty() {
            offered.retain(|row| !self.current.contains_key(&keys[*row]));
            let mut firsts = HashSet::new();
            let (now, later): (Vec<usize>, Vec<usize>) =
                offered.into_iter().partition(|row| firsts.insert(keys[*row]));
            self.take(&now, states, &keys, rows, &mut verdicts);
            offered = later;
        }
        let overdue = self.last_checkpoint.elapsed() >= self.options.checkpoint_interval;
        if overdue || self.pending_states.len() >= self.options.checkpoint_rows {
            self.save(overdue)?;
        }
        Ok(verdicts)
    }

    /// Checks some of the rows that were offered, of different states, and takes the good ones.
    fn take(
        &mut self,
        chosen: &[usize],
        states: &[&str],
        keys: &[StateKey],
        rows: &[f32],
        verdicts: &mut [Verdict],
    ) {
        let dim = self.dim;
        let row = |i: usize| &rows[i * dim..(i + 1) * dim];
        let checked = if chosen.len() == states.len() {
            self.checker.check(keys, rows)
        } else {
            let keys: Vec<StateKey> = chosen.iter().map(|i| keys[*i]).collect();
            let gathered: Vec<f32> = chosen.iter().flat_map(|i| row(*i)).copied().collect();
            self.checker.check(&keys, &gathered)
        };
        for (&i, checked) in chosen.iter().zip(checked) {
            verdicts[i] = match checked {
                Ok(()) => {
                    self.current.insert(keys[i], self.total);
                    self.total += 1;
                    self.pending_states.push(states[i].to_owned());
                    self.pending_values.extend_from_slice(row(i));
                    Verdict::Accepted
                }
                Err(reason) => Verdict::Bad(reason),
            };
        }
    }

    /// Takes rows of the wanted states from an earlier cache of the same identity.
    ///
    /// Of a state's embeddings the newest is taken, which readers find, too. Returns how many were
    /// taken; rows that fail the checks are not, and are re-encoded. The runs that made them stay
    /// in the provenance.
    ///
    /// # Errors
    /// [`CacheError::IdentityMismatch`], or whatever keeps the cache from being read or written.
    pub fn adopt(&mut self, cache: impl AsRef<Path>, wanted: &[&str]) -> CacheResult<u64> {
        let identity = self.identity.clone();
        self.adopt_from(cache, wanted, &identity)
    }

    /// Takes rows of the wanted states from a cache whose identity is `made_by`.
    ///
    /// For an identity in the form of an earlier version: the caller makes sure that the embeddings of these
    /// states are the same under both.
    ///
    /// # Errors
    /// As of [`CacheWriter::adopt`], with `made_by` for the writer's identity.
    pub fn adopt_from(
        &mut self,
        cache: impl AsRef<Path>,
        wanted: &[&str],
        made_by: &Identity,
    ) -> CacheResult<u64> {
        self.settle()?;
        let files = open_files(cache.as_ref())?;
        files.iter().try_for_each(|file| self.require_from(file, made_by))?;
        let last = last_rows(&files, wanted)?;
        for (left, right) in same_tokens(&files)?.key_pairs() {
            self.checker.allow_equal(left, right);
        }
        let before = self.current.len();
        let adopted = (0..).zip(&files).try_for_each(|(number, file)| {
            let is_last =
                |state: &str, row: u64| last.get(&StateKey::of(state)) == Some(&(number, row));
            self.adopt_file(file, is_last)
        });
        self.begin_own_rows();
        adopted?;
        Ok((self.current.len() - before) as u64)
    }

    /// Offers those rows of a file that `is_wanted` says, each as a row of the run that made it.
    fn adopt_file(
        &mut self,
        file: &RowFile,
        is_wanted: impl Fn(&str, u64) -> bool,
    ) -> CacheResult<()> {
        let runs = file.footer().map(Footer::runs).unwrap_or_default();
        let mut end = 0;
        let ends: Vec<u64> = (runs.iter().map(|run| run.rows))
            .map(|rows: u64| {
                end = rows.saturating_add(end);
                end
            })
            .collect();
        let mut row = 0;
        file.for_each(|Rows { states, values }| {
            let mut rest = states.iter().flatten().zip(values.chunks(self.dim)).peekable();
            while rest.peek().is_some() {
                let run = ends.partition_point(|end| *end <= row);
                let (mut texts, mut chosen) = (Vec::new(), Vec::new());
                while let Some((state, value)) =
                    rest.next_if(|_| ends.partition_point(|end| *end <= row) == run)
                {
                    if is_wanted(state, row) {
                        texts.push(state);
                        chosen.extend_from_slice(value);
                    }
                    row += 1;
                }
                self.begin_rows_of(runs.get(run).map(|run| run.provenance.clone()));
                self.append(&texts, &chosen)?;
            }
            Ok(())
        })
    }

    /// Notes that two states have the same tokens, so that their rows are rightly equal.
    pub fn allow_equal(&mut self, left: &str, right: &str) {
        self.allow_equal_keys(StateKey::of(left), StateKey::of(right));
    }

    /// The same by the keys of the states.
    pub fn allow_equal_keys(&mut self, left: StateKey, right: StateKey) {
        self.checker.allow_equal(left, right);
    }

    /// A copy of what is known of the rows so far: a search checks its rows against it.
    #[must_use]
    pub fn row_checker(&self) -> RowChecker {
        self.checker.clone()
    }

    /// Takes a row back that was accepted earlier; returns whether there was one.
    ///
    /// If it is one of the former output's, the output is rewritten without it.
    pub fn retract(&mut self, state: &str) -> bool {
        let key = StateKey::of(state);
        let there = self.current.contains_key(&key);
        self.take_back(key);
        there
    }

    pub(super) fn take_back(&mut self, key: StateKey) {
        self.checker.retract(key);
        let Some(number) = self.current.remove(&key) else { return };
        if number < self.former {
            self.taken_back.push(key);
        }
        self.withdrawn.insert(key);
        self.unsaved_withdrawals = true;
    }
}

fn last_rows(files: &[RowFile], wanted: &[&str]) -> CacheResult<LastRows> {
    let wanted: HashSet<&str> = wanted.iter().copied().collect();
    let mut last = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        let mut row = 0;
        for group in 0..file.group_rows().len() {
            for states in file.group_states(group)? {
                for (state, row) in states.iter().flatten().zip(row..) {
                    if wanted.contains(state) {
                        last.insert(StateKey::of(state), (number, row));
                    }
                }
                row += states.len() as u64;
            }
        }
    }
    Ok(last)
}
