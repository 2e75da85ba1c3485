//! The file that becomes the output: rows go to the disk once, and each checkpoint is a small footer
//! beside it.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::StringArray;
use arrow_array::builder::StringBuilder;
use serde_json::Value;

use super::{CacheWriter, Source};
use crate::file::external_writer;
use crate::file::reader::RowFile;
use crate::file::writer::FileWriter;
use crate::format::error::{CacheError, CacheResult};
use crate::format::schema::ROW_GROUP_ROWS;
use crate::storage::input::Input;
use crate::storage::{self, Sink};

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
    /// Writes the rows of small checkpoints and the pending ones into the growing file, as many as make
    /// whole row groups. Returns whether there were enough of them.
    pub(super) fn grow(&mut self) -> CacheResult<bool> {
        let pending_from = self.total - self.pending_states.len() as u64;
        let first = self.sources.get(self.grown).map_or(pending_from, |source| source.first);
        let rows = self.total - first;
        let rows = rows - rows % ROW_GROUP_ROWS as u64;
        if rows == 0 || !self.folder.is_local() {
            return Ok(false);
        }
        let from_pending = usize::try_from(first + rows - pending_from)
            .map_err(|error| CacheError::Argument(error.to_string()))?;
        // Taken, so that after an error another is begun; what is in this one stays readable.
        let mut growing = match self.growing.take() {
            Some(growing) => growing,
            None => self.begin(first)?,
        };
        let (states, values) = self.rows_from(self.grown, from_pending)?;
        growing.writer.append(&states, &values)?;
        let groups = growing.writer.sync()?;
        let texts = states.iter().flatten();
        let footer = self.shard_footer(first..first + rows, texts, self.known_pairs.grown);
        let name = growing.path.file_name().unwrap_or_default().to_string_lossy();
        let shard =
            self.folder.write_shard(|sink| external_writer::write(sink, groups, &name, &footer))?;
        let input = Input::file(Arc::clone(&growing.rows), growing.writer.bytes());
        let file = RowFile::open_checkpoint(&shard, |_| Ok(input))?;
        self.growing = Some(growing);
        let pairs = self.checker.same_tokens().len();
        (self.known_pairs.grown, self.known_pairs.saved) = (pairs, pairs);
        let replaced = self.sources.split_off(self.grown);
        self.sources.push(Source { file, first });
        self.grown = self.sources.len();
        self.forget_pending(from_pending);
        for source in &replaced {
            if let Err(error) = self.folder.remove_shard(source.file.path()) {
                // The footer comes after it, so of its rows those of the footer count.
                tracing::warn!(%error, "a checkpoint that was replaced could not be removed");
            }
        }
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
        let whole = self.live_from(first) == self.total - first && self.pending_states.is_empty();
        if !whole || self.growing.as_ref().is_none_or(|growing| growing.first != first) {
            return Ok(None);
        }
        let Some(Growing { path, mut writer, .. }) = self.growing.take() else { return Ok(None) };
        let (states, values) = self.rows_from(self.grown, 0)?;
        writer.append(&states, &values)?;
        let rows = writer.rows();
        Ok(Some((writer.close(&self.output_footer(rows, first, provenance))?, path, rows)))
    }

    /// The rows of the sources from `source` on, and the first `pending` of those pending.
    fn rows_from(
        &self,
        source: usize,
        pending: usize,
    ) -> CacheResult<(StringArray, Cow<'_, [f32]>)> {
        let sources = &self.sources[source..];
        let pending_values = &self.pending_values[..pending * self.dim];
        let mut states = StringBuilder::new();
        let mut values = Cow::Borrowed(pending_values);
        if !sources.is_empty() {
            let mut read = Vec::new();
            for source in sources {
                source.file.for_each(|rows| {
                    rows.states.iter().flatten().for_each(|state| states.append_value(state));
                    read.extend(rows.values);
                    Ok(())
                })?;
            }
            read.extend_from_slice(pending_values);
            values = Cow::Owned(read);
        }
        self.pending_states[..pending].iter().for_each(|state| states.append_value(state));
        Ok((states.finish(), values))
    }
}
