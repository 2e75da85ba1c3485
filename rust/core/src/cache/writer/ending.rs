//! The end of a writer: what is left out, and whether and how the output is written.

use serde_json::Value;

use super::{CacheWriter, FinishReport, WriterOptions};
use crate::cache::bad_row::BadRow;
use crate::cache::error::{CacheError, CacheResult};
use crate::cache::storage::{self, Replaces};

impl CacheWriter {
    /// Merges everything into the output, in one atomic step, and removes the shards.
    ///
    /// If no row is new and none was taken back, the output stays as it is, and so do the parts of a
    /// folder, whatever bad rows are in them: only [`compact`](crate::cache::compact) and `overwrite`
    /// take those out.
    ///
    /// # Errors
    /// [`CacheError::Io`]; the former output and the shards then still stand.
    pub fn finish(mut self, provenance: Value) -> CacheResult<FinishReport> {
        self.checkpoint()?;
        self.leave_out_outliers()?;
        let parts = storage::is_folder_output(&self.output)?;
        let present = storage::version(&self.output)?;
        let missing = if parts { self.former_sources == 0 } else { present.is_none() };
        let several = self.former_sources > 1
            || self.live_from(0) - self.live_from(self.former) != self.former;
        let written = self.has_changed()
            || self.options.overwrite
            || (self.options.compact && several)
            || missing;
        if written && parts {
            self.add_part(&provenance)?;
        } else if written && let Some((file, path, _)) = self.complete(0, &provenance)? {
            storage::put_in_place(file, &path)?;
        } else if written {
            let temporary_in = self.folder.path();
            storage::write_atomically(temporary_in, &self.output, Replaces::Anything, |sink| {
                let (sink, _) = self.merge(&self.sources, sink, 0, &provenance)?;
                // Here, just before it is replaced; on this machine the lock keeps others away.
                let remote = storage::is_remote(&self.output)?;
                if remote && storage::version(&self.output)? != self.version {
                    return Err(CacheError::Locked { path: self.output.clone() });
                }
                Ok(sink)
            })?;
        }
        self.folder.remove()?;
        let rows = self.current.len() as u64;
        let left_out = std::mem::take(&mut self.left_out);
        let (replaced, left_out) =
            left_out.into_iter().partition(|(state, _)| self.contains(state));
        Ok(FinishReport { rows, left_out, replaced, repeats: self.repeats, written })
    }

    /// Whether there are rows that the former output does not have, or some of its were taken back.
    pub(super) fn has_changed(&self) -> bool {
        !self.taken_back.is_empty() || self.current.values().any(|number| *number >= self.former)
    }

    /// Whether the parts of the former output stay what they are.
    pub(super) fn keeps_parts(&self) -> CacheResult<bool> {
        let WriterOptions { overwrite, compact, .. } = self.options;
        let written_anew = compact || overwrite || !self.taken_back.is_empty();
        Ok(!written_anew && storage::is_folder_output(&self.output)?)
    }

    /// Number of the rows from this one on that count for their states.
    pub(super) fn live_from(&self, first: u64) -> u64 {
        self.current.values().filter(|number| **number >= first).count() as u64
    }

    /// Leaves out the rows whose norms are far from all others'. Those in parts that stay are reported
    /// alone.
    pub(super) fn leave_out_outliers(&mut self) -> CacheResult<()> {
        let keeps = self.keeps_parts()?;
        if !keeps {
            // What is written has one row of each state.
            self.current.keys().for_each(|key| self.checker.retract_earlier(*key));
        }
        for outlier in self.checker.norm_outliers() {
            let key = outlier.state;
            let Some((state, _)) = self.stored(key)? else { continue };
            let stays = keeps && self.current.get(&key).is_some_and(|number| *number < self.former);
            if !stays {
                self.checker.retract(key);
                self.current.remove(&key);
            }
            // One that stays is found again at each commit.
            if self.outliers.insert(key) || !stays {
                self.leave_out(state, outlier.reason);
            }
        }
        Ok(())
    }

    /// Notes a row that is not kept.
    pub(super) fn leave_out(&mut self, state: String, reason: BadRow) {
        self.left_out.push((state, reason));
    }

    /// Rows that were found bad though they had been stored, in the former output, by an interrupted run
    /// or by this writer, with the reason; the one of a state that has a good row by now as well.
    ///
    /// [`CacheWriter::finish`] reports them, too.
    #[must_use]
    pub fn left_out(&self) -> &[(String, BadRow)] {
        &self.left_out
    }

    /// Marks the checkpointed rows as wrong: no later run will resume from them.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn reject(mut self, reason: &str) -> CacheResult<()> {
        self.checkpoint()?;
        self.folder.reject(reason)
    }
}
