//! Showing rows to readers while the writer stays open.

use serde_json::Value;

use super::footers::KnownPairs;
use super::{CacheWriter, Source};
use crate::file::reader::RowFile;
use crate::folder::manifest::Manifest;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::storage::{self, Version};

/// A part that was written, and the manifest that lists it.
#[derive(Debug)]
pub(super) struct NewPart {
    pub(super) manifest: Manifest,
    pub(super) file: RowFile,
    /// Whether the parts before it stand.
    pub(super) keeps: bool,
    /// Number of its first row.
    pub(super) first: u64,
    /// The rows in it, each with the number that it had before.
    pub(super) rows: Vec<(u64, StateKey)>,
    /// How many pairs of states with the same tokens were known when it was written.
    pub(super) pairs: usize,
}

impl CacheWriter {
    /// Adds the rows so far to the output, which must be a folder, as a part that readers see from then
    /// on; the writer stays open. Returns the number of rows that the output has.
    ///
    /// For processes that live long and append a little at a time, a search for example. Many small
    /// parts are slow to open; `compact` makes one of them. Rows that are dropped because their norm proved
    /// far from that of all others are in [`CacheWriter::left_out`] from then on.
    ///
    /// # Errors
    /// [`CacheError::Argument`] if the output is a file; [`CacheError::Conflict`] if another process
    /// changed it; [`CacheError::Io`]. The rows then still stand as checkpoints: this writer commits them
    /// when it is asked again, or the next one takes them up.
    #[expect(clippy::needless_pass_by_value, reason = "callers make it for this call alone")]
    pub fn commit(&mut self, provenance: Value) -> CacheResult<u64> {
        self.commit_rows(&provenance).map_err(|error| self.overtaken(error))
    }

    fn commit_rows(&mut self, provenance: &Value) -> CacheResult<u64> {
        self.settle()?;
        if !storage::is_folder_output(&self.output)? {
            let message =
                "only a folder can be added to while its writer stays open\nhint: name a folder";
            return Err(CacheError::Argument(format!("{}: {message}", self.output.display())));
        }
        self.checkpoint()?;
        let known = self.left_out.len();
        self.leave_out_outliers()?;
        for (state, reason) in &self.left_out[known..] {
            tracing::warn!(%reason, state, "an embedding was dropped");
        }
        let rows = self.current.len() as u64;
        if !self.has_changed() {
            return Ok(rows);
        }
        let (part, version) = self.add_part(provenance)?;
        self.take_over(part, version);
        Ok(rows)
    }

    /// Finds out whether a commit that failed was made after all: a store's answer may be lost after it
    /// did what it was asked. To be called before rows are added, which are none of that commit's.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if neither its manifest nor the former one stands; [`CacheError::Io`],
    /// after which it still is to be found out.
    pub fn settle(&mut self) -> CacheResult<()> {
        let Some(part) = self.unsure.take() else { return Ok(()) };
        let found = match Manifest::read(&self.output) {
            Ok(found) => found,
            Err(error) => {
                self.unsure = Some(part);
                return Err(error);
            }
        };
        match found {
            Some((manifest, version)) if manifest == part.manifest => {
                self.take_over(part, version);
                Ok(())
            }
            // The part stays: the request may be under way still.
            found if found.as_ref().map(|(_, version)| version) == self.version.as_ref() => Ok(()),
            _ => Err(CacheError::Conflict { path: self.output.clone() }),
        }
    }

    /// Counts the rows of a part that the manifest lists as the output's. Reads nothing, so that nothing
    /// can keep this writer from what is the case by now.
    fn take_over(&mut self, part: NewPart, version: Version) {
        let NewPart { manifest, file, keeps, first, rows, pairs } = part;
        let mut gone = Vec::new();
        for (number, (before, key)) in (first..).zip(&rows) {
            if self.current.get(key) == Some(before) {
                self.current.insert(*key, number);
            } else {
                gone.push(*key); // taken back meanwhile, and still in the part
            }
        }
        self.sources.truncate(if keeps { self.former_sources } else { 0 });
        self.forget_runs_from(first);
        self.note_runs(&file, first, false);
        self.known_pairs = KnownPairs { output: pairs, grown: pairs, saved: pairs };
        // Those of parts that stand are still to be taken out.
        if !keeps {
            self.taken_back.clear();
        }
        self.taken_back.extend(gone);
        self.withdrawn = self.taken_back.iter().copied().collect();
        self.sources.push(Source { file, first });
        self.former = first + rows.len() as u64;
        self.former_sources = self.sources.len();
        self.grown = self.sources.len();
        self.growing = None;
        self.total = self.former;
        self.version = Some(version);
        self.options.overwrite = false;
        self.tidy_up(&manifest);
        if let Err(error) = self.folder.clear() {
            // Their rows are the output's; the next writer finds that out.
            tracing::warn!(%error, "checkpoints could not be removed");
        }
    }

    /// Removes the files that a manifest no longer lists. It still says so if that fails.
    pub(super) fn tidy_up(&self, manifest: &Manifest) {
        if let Err(error) = manifest.remove_superseded(&self.output) {
            tracing::warn!(%error, "a part that was replaced could not be removed; the next writer does");
        }
    }
}
