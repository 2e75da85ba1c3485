//! What a writer skips, and whether the parts of the former output stay what they are.

use super::{CacheWriter, WriterOptions};
use crate::format::bad_row::BadRow;
use crate::format::error::CacheResult;
use crate::storage;

impl CacheWriter {
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

    /// Skips the rows whose norms are far from all others'. Those in parts that stay are only
    /// reported.
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
