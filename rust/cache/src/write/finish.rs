//! The end of a writer: everything in the output, in one step.

use std::collections::HashMap;

use serde_json::Value;

use super::{CacheWriter, FinishReport};
use crate::file::reader::RowFile;
use crate::folder::parts;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::storage::{self, Replaces, Size, store_at};

impl CacheWriter {
    /// Merges everything into the output, in one atomic step, and removes the shards.
    ///
    /// If no row is new and none was taken back, the output stays as it is, and so do the parts of a
    /// folder, whatever bad rows are in them: only [`compact`](crate::write::compact) and `overwrite`
    /// take those out.
    ///
    /// If another process changed the output meanwhile and it has all of these rows, bit for bit, there is
    /// nothing to write, and that is no error.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if another process changed the output and it lacks rows; [`CacheError::Io`].
    /// What stood there then still stands (or, where a store's answer was lost, the new output), and so
    /// do the shards, which the next writer takes up.
    #[expect(clippy::needless_pass_by_value, reason = "callers make it for this call alone")]
    pub fn finish(mut self, provenance: Value) -> CacheResult<FinishReport> {
        let merged = self.merge_into_output(&provenance);
        let written = match merged.map_err(|error| self.overtaken(error)) {
            Err(CacheError::Conflict { .. }) if self.is_all_there() => false,
            written => written?,
        };
        if let Err(error) = self.folder.remove() {
            // The output is in its place; what is left of the shards says nothing new to the next writer.
            tracing::warn!(%error, "the work folder could not be removed; the next writer does");
        }
        let rows = self.current.len() as u64;
        let left_out = std::mem::take(&mut self.left_out);
        let (replaced, left_out) =
            left_out.into_iter().partition(|(state, _)| self.contains(state));
        Ok(FinishReport { rows, left_out, replaced, repeats: self.repeats, written })
    }

    /// Returns whether the output was written.
    fn merge_into_output(&mut self, provenance: &Value) -> CacheResult<bool> {
        self.settle()?;
        self.checkpoint()?;
        self.leave_out_outliers()?;
        let parts = storage::is_folder_output(&self.output)?;
        let missing = if parts {
            self.former_sources == 0
        } else {
            store_at(&self.output)?.version()?.is_none()
        };
        let several = self.former_sources > 1
            || self.live_from(0) - self.live_from(self.former) != self.former;
        let written = self.has_changed()
            || self.options.overwrite
            || (self.options.compact && several)
            || missing;
        if written && parts {
            let (part, _) = self.add_part(provenance)?;
            self.tidy_up(&part.manifest);
        } else if written {
            self.replace_file(provenance).map_err(|error| self.or_conflict(error))?;
        }
        Ok(written)
    }

    /// Writes all rows that count in the place of the former file.
    fn replace_file(&mut self, provenance: &Value) -> CacheResult<()> {
        let grown = self.complete(0, provenance)?;
        let replaces = Replaces::former(self.version.as_ref());
        if let Some((file, path, _)) = grown {
            return storage::put_in_place(file, &path, replaces).map(|_| ());
        }
        let temporary_in = self.folder.path();
        let merge = |sink| Ok(self.merge(&self.sources, sink, 0, provenance)?.0);
        let store = store_at(&self.output)?;
        store.write(temporary_in, Size::Large, replaces, Box::new(merge)).map(|_| ())
    }

    /// What kept a file from being written: that another process replaced it, if that is so. Rows of the
    /// former file can be read no longer then.
    fn or_conflict(&self, error: CacheError) -> CacheError {
        match store_at(&self.output).and_then(|store| store.version()) {
            Ok(Some(version)) if Some(&version) != self.version.as_ref() => {
                CacheError::Conflict { path: self.output.clone() }
            }
            _ => error,
        }
    }

    /// In a store another writer takes up the shards that it finds, these too, and removes them when its
    /// output has their rows: then it is that which kept this one from continuing.
    pub(super) fn overtaken(&self, error: CacheError) -> CacheError {
        match error {
            CacheError::NotFound { path, .. }
                if !self.folder.is_local() && path.starts_with(self.folder.path()) =>
            {
                CacheError::Conflict { path: self.output.clone() }
            }
            error => error,
        }
    }

    /// Whether the output, as it is now, has every row of this writer, bit for bit.
    fn is_all_there(&self) -> bool {
        let read = parts::read_files(&self.output, RowFile::open_source, |files| {
            let mut there = HashMap::new();
            for file in &files {
                self.require(file)?;
                file.for_each(|rows| {
                    let states = rows.states.iter().flatten().map(StateKey::of);
                    there.extend(states.zip(rows.values.chunks(self.dim).map(digest)));
                    Ok(())
                })?;
            }
            Ok(there)
        });
        // Of another encoder, or damaged: then these rows are not there.
        let Ok(there) = read else { return false };
        let stands = |key: &StateKey| there.contains_key(key) && !self.current.contains_key(key);
        if self.taken_back.iter().any(stands) {
            return false;
        }
        let same = |(state, row): (&str, &[f32])| {
            there.get(&StateKey::of(state)).is_some_and(|there| *there == digest(row))
        };
        let mut all = true;
        for source in &self.sources {
            let mut number = source.first;
            let read = source.file.for_each(|rows| {
                let (states, values) = self.counting(rows, &mut number);
                all &= states.iter().flatten().zip(values.chunks(self.dim)).all(same);
                Ok(())
            });
            if read.is_err() {
                return false; // the former file, which is another by now
            }
        }
        let pending_from = self.total - self.pending_states.len() as u64;
        let pending = self.pending_states.iter().zip(self.pending_values.chunks(self.dim));
        let counts =
            |number: u64, state: &str| self.current.get(&StateKey::of(state)) == Some(&number);
        all && (pending_from..)
            .zip(pending)
            .filter(|(number, (state, _))| counts(*number, state))
            .all(|(_, (state, row))| same((state, row)))
    }
}

/// The digest of a row's bits.
fn digest(row: &[f32]) -> blake3::Hash {
    blake3::hash(bytemuck::cast_slice(row))
}
