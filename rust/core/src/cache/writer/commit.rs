//! Showing rows to readers while the writer stays open.

use serde_json::Value;

use super::footers::KnownPairs;
use super::{CacheWriter, Source};
use crate::cache::error::{CacheError, CacheResult};
use crate::cache::footer::StateKey;
use crate::cache::manifest::Manifest;
use crate::cache::row_file::RowFile;
use crate::cache::storage;

impl CacheWriter {
    /// Adds the rows so far to the output, which must be a folder, as a part that readers see from then
    /// on; the writer goes on. Returns the number of rows that the output has.
    ///
    /// For processes that live long and append a little at a time, a search for example. Many small
    /// parts are slow to open; `compact` makes one of them. Rows that are left out because their norm proved
    /// far from that of all others are in [`CacheWriter::left_out`] from then on.
    ///
    /// # Errors
    /// [`CacheError::Argument`] if the output is a file; [`CacheError::Io`], after which the rows still
    /// stand as checkpoints, and the next writer takes them up.
    pub fn commit(&mut self, provenance: Value) -> CacheResult<u64> {
        if !storage::is_folder_output(&self.output)? {
            let message = "only a folder can be added to while its writer goes on; name a folder";
            return Err(CacheError::Argument(format!("{}: {message}", self.output.display())));
        }
        self.checkpoint()?;
        let known = self.left_out.len();
        self.leave_out_outliers()?;
        for (state, reason) in &self.left_out[known..] {
            tracing::warn!(%reason, state, "a row was left out");
        }
        let rows = self.current.len() as u64;
        if !self.has_changed() {
            return Ok(rows);
        }
        let manifest = self.add_part(&provenance)?;
        self.take_over(&manifest)?;
        Ok(rows)
    }

    /// Counts the rows of the part that was added as the output's.
    fn take_over(&mut self, written: &Manifest) -> CacheResult<()> {
        let (manifest, version) = Manifest::read(&self.output)?.unzip();
        let Some((part, kept)) = written.parts.split_last() else { return Ok(()) };
        if manifest.as_ref() != Some(written) {
            return Err(CacheError::Locked { path: self.output.clone() });
        }
        let kept = kept.len();
        // Either all former sources are parts still, or the new part has all rows.
        let first = if kept == 0 { 0 } else { self.former };
        let file = RowFile::open_source(&self.output.join(&part.file))?;
        let mut moved: Vec<(u64, StateKey)> = self
            .current
            .iter()
            .filter(|(_, number)| **number >= first)
            .map(|(key, number)| (*number, *key))
            .collect();
        moved.sort_unstable_by_key(|(number, _)| *number);
        for (number, (_, key)) in (first..).zip(&moved) {
            self.current.insert(*key, number);
        }
        self.sources.truncate(if kept == 0 { 0 } else { self.former_sources });
        self.forget_runs_from(first);
        self.note_runs(&file, first, false);
        let pairs = self.checker.same_tokens().len();
        self.known_pairs = KnownPairs { output: pairs, grown: pairs, saved: pairs };
        self.taken_back.clear();
        self.sources.push(Source { file, first });
        self.former = first + moved.len() as u64;
        self.former_sources = self.sources.len();
        self.grown = self.sources.len();
        self.growing = None;
        self.total = self.former;
        self.version = version;
        self.options.overwrite = false;
        self.folder.clear()
    }
}
