//! The file that becomes the output: rows go to the disk once, and each checkpoint is a small footer
//! beside it.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::StringArray;
use serde_json::Value;

use super::{CacheWriter, Source};
use crate::cache::error::CacheResult;
use crate::cache::file_writer::{FileWriter, SMALL_GROUP};
use crate::cache::input::Input;
use crate::cache::outside_rows;
use crate::cache::row_file::RowFile;
use crate::cache::storage::{self, Sink};

/// A file of row groups that has no footer yet.
pub(super) struct Growing {
    path: PathBuf,
    writer: FileWriter,
    /// The same file, to be read.
    rows: Arc<File>,
    /// Number of its first row among the rows of all sources.
    first: u64,
}

impl fmt::Debug for Growing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Growing({}, from row {})", self.path.display(), self.first)
    }
}

impl CacheWriter {
    /// Makes the rows since the last checkpoint, and those of small checkpoints before it, row groups of
    /// the growing file. Returns whether there are enough of them.
    pub(super) fn grow(&mut self) -> CacheResult<bool> {
        let pending_from = self.total - self.pending_states.len() as u64;
        let first = self.sources.get(self.grown).map_or(pending_from, |source| source.first);
        let rows = self.total - first;
        if rows < SMALL_GROUP as u64 || !self.folder.is_local() {
            return Ok(false);
        }
        let (states, values);
        let (states, values) = if first == pending_from {
            states = StringArray::from_iter_values(&self.pending_states);
            (&states, &self.pending_values)
        } else {
            (states, values) = self.rows_from(self.grown)?;
            (&states, &values)
        };
        // Taken, so that after an error another is begun; what is in this one stays readable.
        let mut growing = match self.growing.take() {
            Some(growing) => growing,
            None => self.begin(first)?,
        };
        growing.writer.append_groups(states, values)?;
        let groups = growing.writer.sync()?;
        let footer = self.footer(rows, Value::Null);
        let name = growing.path.file_name().unwrap_or_default().to_string_lossy();
        let shard = self.folder.write_shard(|sink| outside_rows::write(sink, groups, &name, &footer))?;
        let input = Input::file(Arc::clone(&growing.rows), growing.writer.bytes());
        let file = RowFile::open_checkpoint(&shard, |_| Ok(input))?;
        self.growing = Some(growing);
        let replaced = self.sources.split_off(self.grown);
        self.sources.push(Source { file, first });
        self.grown = self.sources.len();
        self.pending_states.clear();
        self.pending_values.clear();
        replaced.iter().try_for_each(|source| self.folder.remove_shard(source.file.path()))?;
        Ok(true)
    }

    fn begin(&self, first: u64) -> CacheResult<Growing> {
        let path = self.folder.next_rows();
        let (sink, rows) = storage::begin(&path, &self.output)?;
        // Of a part the manifest has the digest.
        let sink = if storage::is_folder_output(&self.output)? { sink.hashing() } else { sink };
        let writer = FileWriter::new(sink, self.dim)?;
        Ok(Growing { path, writer, rows: Arc::new(rows), first })
    }

    /// Completes the growing file, if it and the small checkpoints after it are all rows from `first` on
    /// and all count. Returns it with its path and the number of its rows.
    pub(super) fn complete(
        &mut self,
        first: u64,
        provenance: &Value,
    ) -> CacheResult<Option<(Sink, PathBuf, u64)>> {
        let whole = self.current.len() as u64 == self.total && self.pending_states.is_empty();
        if !whole || self.growing.as_ref().is_none_or(|growing| growing.first != first) {
            return Ok(None);
        }
        let Some(Growing { path, mut writer, .. }) = self.growing.take() else { return Ok(None) };
        let (states, values) = self.rows_from(self.grown)?;
        writer.append(&states, &values)?;
        let rows = writer.rows();
        Ok(Some((writer.close(&self.footer(rows, provenance.clone()))?, path, rows)))
    }

    /// The rows of these sources and those pending.
    fn rows_from(&self, source: usize) -> CacheResult<(StringArray, Vec<f32>)> {
        let (mut states, mut values) = (Vec::new(), Vec::new());
        for source in &self.sources[source..] {
            source.file.for_each(|rows| {
                states.extend(rows.states.iter().flatten().map(str::to_owned));
                values.extend(rows.values);
                Ok(())
            })?;
        }
        states.extend_from_slice(&self.pending_states);
        values.extend_from_slice(&self.pending_values);
        Ok((StringArray::from(states), values))
    }
}
