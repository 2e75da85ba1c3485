//! All sources of a writer into one file, or into a new part of a folder: of each state the row that
//! counts.

use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::StringArray;
use arrow_array::builder::StringBuilder;
use serde_json::Value;

use super::commit::NewPart;
use super::{CacheWriter, Source};
use crate::file::reader::RowFile;
use crate::file::rows::Rows;
use crate::file::writer::FileWriter;
use crate::folder::manifest::{Manifest, Part};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;
use crate::format::schema::PARQUET;
use crate::storage::{self, Kind, Replaces, Sink, Size, Version, store_at};

impl CacheWriter {
    /// Writes the rows that count of some sources, the first of which has the number `from`, as one file;
    /// returns how many.
    pub(super) fn merge(
        &self,
        sources: &[Source],
        sink: Sink,
        from: u64,
        provenance: &Value,
    ) -> CacheResult<(Sink, u64)> {
        let mut merged = FileWriter::new(sink, self.dim)?;
        for Source { file, first } in sources {
            let mut number = *first;
            for (group, rows) in file.group_rows().iter().enumerate() {
                let numbers = number..number + *rows as u64;
                if merged.takes_group_of(*rows)
                    && self.all_count(file, group, numbers.clone())?
                    && merged.copy_group(file, group)?
                {
                    number = numbers.end;
                    continue;
                }
                file.for_each_in_group(group, |rows| {
                    let (states, values) = self.counting(rows, &mut number);
                    merged.append(&states, &values)
                })?;
            }
        }
        let rows = merged.rows();
        Ok((merged.close(&self.output_footer(rows, from, provenance))?, rows))
    }

    /// Writes the new rows as a part of the folder, or all rows if parts before it would keep rows
    /// that no longer count; then lists the parts in the manifest. Returns what was added, and the
    /// manifest's version.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] if the manifest is not the one that was opened; [`CacheError::Io`]. If that
    /// was when the manifest was written, [`Self::settle`] finds out whether it was.
    pub(super) fn add_part(&mut self, provenance: &Value) -> CacheResult<(NewPart, Version)> {
        let folder = &self.output.clone();
        let (former, version) = Manifest::read(folder)?.unzip();
        if version != self.version {
            return Err(CacheError::Conflict { path: folder.clone() });
        }
        if former.is_none() {
            self.require_no_other_files()?;
        }
        let mut manifest = Manifest::new(self.identity.clone(), self.dim);
        if let Some(former) = &former {
            manifest.superseded = former.still_superseded(folder)?;
        }
        let keeps = self.keeps_parts()?;
        let (new, first) = if keeps {
            let files = self.sources[..self.former_sources].iter().map(|source| &source.file);
            manifest.parts = match &former {
                Some(former) => former.parts.clone(),
                None => files.map(Part::of).collect::<CacheResult<_>>()?,
            };
            (self.former_sources, self.former)
        } else {
            manifest.superseded.extend(match &former {
                Some(former) => former.parts.iter().map(|part| part.file.clone()).collect(),
                None => self.former_files.clone(),
            });
            (0, 0)
        };
        // A name that no part has had: the former manifest must stay true until it is replaced.
        let path = folder.join(former.as_ref().unwrap_or(&manifest).next_name(folder)?);
        let part = self.new_part(&path, manifest, (new, first), provenance)?;
        let part = NewPart { keeps, ..part };
        match part.manifest.write(folder, version.as_ref()) {
            Ok(version) => Ok((part, version)),
            Err(error) => {
                if !matches!(error, CacheError::Conflict { .. }) {
                    self.unsure = Some(part);
                }
                Err(error)
            }
        }
    }

    /// Writes a part and opens it, and adds it to a manifest.
    fn new_part(
        &mut self,
        path: &Path,
        mut manifest: Manifest,
        (new, first): (usize, u64),
        provenance: &Value,
    ) -> CacheResult<NewPart> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.former_files.push(name); // should the manifest fail, it is no stranger
        manifest.parts.push(self.write_part(path, new, first, provenance)?);
        // Before the manifest lists it: nothing that can fail may come after that. If this fails,
        // the file is not removed: where there was no manifest yet, another writer may have taken
        // it for a part.
        let file = RowFile::open_source(path)?;
        let numbers = self.current.iter().map(|(key, number)| (*number, *key));
        let mut rows: Vec<(u64, StateKey)> =
            numbers.filter(|(number, _)| *number >= first).collect();
        rows.sort_unstable_by_key(|(number, _)| *number);
        let pairs = self.checker.same_tokens().len();
        Ok(NewPart { manifest, file, keeps: false, first, rows, pairs })
    }

    /// Refuses files that came into a folder without a manifest after the writer was opened: the manifest
    /// would hide them from readers, though nobody has looked at them.
    fn require_no_other_files(&self) -> CacheResult<()> {
        let there = parquet_files(&self.output)?;
        match there.iter().find(|name| !self.former_files.contains(name)) {
            Some(new) => Err(CacheError::Conflict { path: self.output.join(new) }),
            None => Ok(()),
        }
    }

    /// Writes the rows of the sources from `new` on, the first of which has the number `first`, as a part.
    fn write_part(
        &mut self,
        path: &Path,
        new: usize,
        first: u64,
        provenance: &Value,
    ) -> CacheResult<Part> {
        if let Some((file, grown, rows)) = self.complete(first, provenance)?
            && let Some(written) = storage::link(file, &grown, path)?
        {
            return Part::written(path, rows, &written);
        }
        let (mut rows, sources) = (0, &self.sources[new..]);
        let temporary_in = self.folder.path();
        let write = Box::new(|sink: Sink| {
            let (sink, count) = self.merge(sources, sink.hashing(), first, provenance)?;
            rows = count;
            Ok(sink)
        });
        let store = store_at(path)?;
        let written = store.write(temporary_in, Size::Large, Replaces::Nothing, write)?;
        Part::written(path, rows, &written)
    }

    /// Whether all rows of a source's row group count for their states.
    fn all_count(&self, file: &RowFile, group: usize, numbers: Range<u64>) -> CacheResult<bool> {
        let states = file.group_states(group)?;
        let counts = |(state, number): (&str, u64)| {
            self.current.get(&StateKey::of(state)).is_some_and(|current| *current == number)
        };
        Ok(states.iter().flatten().flatten().zip(numbers).all(counts))
    }

    /// Those of a source's rows that count for their state.
    pub(super) fn counting(&self, rows: Rows, number: &mut u64) -> (StringArray, Vec<f32>) {
        let counts = |state: &str, number: u64| {
            self.current.get(&StateKey::of(state)).is_some_and(|current| *current == number)
        };
        let keep: Vec<bool> = rows
            .states
            .iter()
            .flatten()
            .zip(*number..)
            .map(|(state, number)| counts(state, number))
            .collect();
        *number += keep.len() as u64;
        if keep.iter().all(|keep| *keep) {
            return (rows.states, rows.values);
        }
        let mut states = StringBuilder::new();
        let mut values = Vec::new();
        let all = rows.states.iter().flatten().zip(rows.values.chunks(self.dim));
        for ((state, row), _) in all.zip(keep).filter(|(_, keep)| *keep) {
            states.append_value(state);
            values.extend_from_slice(row);
        }
        (states.finish(), values)
    }
}

/// The names of a folder's Parquet files; none where there is no folder.
pub(super) fn parquet_files(folder: &Path) -> CacheResult<Vec<String>> {
    if storage::kind(folder)? != Kind::Folder {
        return Ok(Vec::new());
    }
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    Ok(storage::list(folder, PARQUET)?.iter().filter_map(name).collect())
}
