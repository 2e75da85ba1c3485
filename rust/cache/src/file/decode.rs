//! The rows of a file, decoded some at a time, whoever wrote it.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ListArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};

use crate::file::failures::{guard, in_group};
use crate::file::reader::RowFile;
use crate::file::rows::Rows;
use crate::file::sound::{self, Sound};
use crate::format::error::{CacheError, CacheResult};

/// Rows decoded at a time: 16 MiB at dimension 4,096.
const BATCH_ROWS: usize = 1024;
/// The columns of states and embeddings.
const BOTH: [usize; 2] = [0, 1];

impl RowFile {
    /// Reads one row group, some rows at a time, in order.
    pub(crate) fn for_each_in_group(
        &self,
        group: usize,
        mut visit: impl FnMut(Rows) -> CacheResult<()>,
    ) -> CacheResult<()> {
        let first = self.first_of(group);
        let mut read = 0_usize;
        let located = |error| in_group(group, error);
        for batch in guard(&self.path, || self.reader(&[group], &BOTH, None)).map_err(located)? {
            let batch = batch.map_err(|error| located(self.naming_row(group, error)))?;
            let rows = self.decode(&batch, first.saturating_add(read as u64))?;
            read += rows.states.len();
            visit(rows)?;
        }
        self.require_rows(group, read)
    }

    /// Reads all rows, some at a time, in order, with what is malformed set apart.
    ///
    /// # Errors
    /// That of the first row, if a footer claims another length than any row has: then it is the footer
    /// that is wrong.
    pub(crate) fn for_each_sound(
        &self,
        mut visit: impl FnMut(Sound) -> CacheResult<()>,
    ) -> CacheResult<()> {
        let (mut first_error, mut any_sound) = (None, false);
        for group in 0..self.group_rows.len() {
            let (first, mut read) = (self.first_of(group), 0);
            let located = |error| in_group(group, error);
            for batch in
                guard(&self.path, || self.reader(&[group], &BOTH, None)).map_err(located)?
            {
                let batch = batch.map_err(|error| located(self.naming_row(group, error)))?;
                let at = first.saturating_add(read as u64);
                read += batch.num_rows();
                let sound = match self.decode(&batch, at) {
                    Ok(rows) if self.dim > 0 => Sound::all(rows, at),
                    Err(error @ CacheError::Row { .. }) => {
                        first_error.get_or_insert(error);
                        sound::sort_out(&batch, at, self.dim)
                    }
                    Ok(_) => sound::sort_out(&batch, at, self.dim),
                    Err(error) => return Err(error),
                };
                any_sound |= !sound.numbers.is_empty();
                visit(sound)?;
            }
            self.require_rows(group, read)?;
        }
        match first_error {
            Some(error) if self.footer.is_some() && !any_sound => Err(error),
            _ => Ok(()),
        }
    }

    /// An error of decoding a row group; if one of its states is no text, that row's.
    fn naming_row(&self, group: usize, error: CacheError) -> CacheError {
        if !matches!(error, CacheError::Format { .. }) {
            return error;
        }
        let found = guard(&self.path, || {
            sound::first_not_text(&self.input, group).map_err(|error| self.damaged(&error))
        });
        match found {
            Ok(Some(row)) => {
                let detail = "state is not UTF-8 text";
                CacheError::row(&self.path, self.first_of(group).saturating_add(row), detail)
            }
            _ => error,
        }
    }

    /// The states of one row group.
    pub(crate) fn group_states(&self, group: usize) -> CacheResult<Vec<StringArray>> {
        let first = self.first_of(group);
        let (mut states, mut read) = (Vec::new(), 0_usize);
        let located = |error| in_group(group, error);
        for batch in guard(&self.path, || self.reader(&[group], &[0], None)).map_err(located)? {
            let batch = batch.map_err(|error| located(self.naming_row(group, error)))?;
            let column = batch.column(0).as_string::<i32>().clone();
            self.refuse_null("state", column.nulls(), first.saturating_add(read as u64))?;
            read += column.len();
            states.push(column);
        }
        self.require_rows(group, read)?;
        Ok(states)
    }

    /// Reads all rows, some at a time, in order.
    pub(crate) fn for_each(
        &self,
        mut visit: impl FnMut(Rows) -> CacheResult<()>,
    ) -> CacheResult<()> {
        (0..self.group_rows.len()).try_for_each(|group| self.for_each_in_group(group, &mut visit))
    }

    /// Reads the rows with these numbers (ascending, distinct).
    pub(crate) fn read_rows(&self, numbers: &[usize]) -> CacheResult<Rows> {
        let ranges = numbers.iter().map(|&number| number..number + 1);
        let selection = RowSelection::from_consecutive_ranges(ranges.into_iter(), self.num_rows());
        let groups: Vec<usize> = (0..self.group_rows.len()).collect();
        let mut states = Vec::new();
        let mut values = Vec::new();
        for batch in guard(&self.path, || self.reader(&groups, &BOTH, Some(selection)))? {
            let rows = self.decode(&batch?, 0)?;
            states.extend(rows.states.iter().flatten().map(str::to_owned));
            values.extend(rows.values);
        }
        Ok(Rows { states: StringArray::from(states), values })
    }

    fn require_rows(&self, group: usize, read: usize) -> CacheResult<()> {
        let expected = self.group_rows[group];
        if read == expected {
            return Ok(());
        }
        let detail = format!("row group {group} has {read} rows, its metadata says {expected}");
        Err(CacheError::format(&self.path, detail))
    }

    fn reader(
        &self,
        groups: &[usize],
        columns: &[usize],
        selection: Option<RowSelection>,
    ) -> CacheResult<Guarded<'_>> {
        let input = match groups {
            [group] if selection.is_none() => self.ahead(*group, columns)?,
            _ => self.input.clone(),
        };
        let columns = columns.iter().copied();
        let columns = ProjectionMask::roots(self.metadata.parquet_schema(), columns);
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(input, self.metadata.clone())
                .with_row_groups(groups.to_vec())
                .with_projection(columns)
                .with_batch_size(BATCH_ROWS);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let reader = builder.build().map_err(|error| self.damaged(&error))?;
        Ok(Guarded { file: self, reader: Some(reader) })
    }

    /// The footer's dimension, or that of the first row with values.
    pub(super) fn find_dim(&self) -> CacheResult<usize> {
        if let Some(footer) = &self.footer {
            return Ok(footer.dim);
        }
        let groups = self.group_rows.iter().enumerate().filter(|(_, rows)| **rows > 0);
        for (group, _) in groups {
            for batch in guard(&self.path, || self.reader(&[group], &[1], None))? {
                let lists = batch?.column(0).as_list::<i32>().clone();
                let mut lengths = (0..lists.len()).filter(|row| lists.is_valid(*row));
                if let Some(row) = lengths.find(|row| lists.value_length(*row) > 0) {
                    let wrong = |_| CacheError::row(&self.path, 0, "a list of negative length");
                    return usize::try_from(lists.value_length(row)).map_err(wrong);
                }
            }
        }
        Ok(0)
    }

    fn decode(&self, batch: &RecordBatch, first: u64) -> CacheResult<Rows> {
        let (states, lists) = self.columns_of(batch, first)?;
        if let Some(row) = lists.offsets().lengths().position(|length| length != self.dim) {
            let (found, dim) = (lists.value_length(row), self.dim);
            let detail = format!("embedding has {found} values, expected {dim}");
            return Err(CacheError::row(&self.path, first.saturating_add(row as u64), detail));
        }
        let child = lists.values();
        if child.null_count() > 0 {
            let null = (0..child.len()).find(|&i| child.is_null(i)).unwrap_or_default();
            let row = first.saturating_add((null / self.dim.max(1)) as u64);
            return Err(CacheError::row(&self.path, row, "embedding has a null value"));
        }
        let values = sound::as_float32(child);
        Ok(Rows { states, values })
    }

    /// The two columns of a batch, without nulls, and the lists without an offset.
    fn columns_of(&self, batch: &RecordBatch, first: u64) -> CacheResult<(StringArray, ListArray)> {
        let states = batch.column(0).as_string::<i32>().clone();
        let lists = batch.column(1).as_list::<i32>().clone();
        self.refuse_null("state", states.nulls(), first)?;
        self.refuse_null("embedding", lists.nulls(), first)?;
        Ok((states, lists))
    }

    fn refuse_null(&self, what: &str, nulls: Option<&NullBuffer>, first: u64) -> CacheResult<()> {
        match nulls.and_then(|nulls| nulls.iter().position(|valid| !valid)) {
            Some(row) => {
                let detail = format!("{what} is null");
                Err(CacheError::row(&self.path, first.saturating_add(row as u64), detail))
            }
            None => Ok(()),
        }
    }
}

/// A batch reader whose panics on hostile bytes come out as errors.
struct Guarded<'a> {
    file: &'a RowFile,
    reader: Option<ParquetRecordBatchReader>,
}

impl Iterator for Guarded<'_> {
    type Item = CacheResult<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = self.reader.take()?;
        let item = guard(&self.file.path, || {
            let item = reader.next();
            Ok(item.map(|batch| (reader, batch)))
        });
        match item {
            Ok(None) => None,
            Ok(Some((reader, Ok(batch)))) => {
                self.reader = Some(reader);
                Some(Ok(batch))
            }
            Ok(Some((_, Err(error)))) => Some(Err(self.file.damaged(&error.into()))),
            Err(error) => Some(Err(error)),
        }
    }
}
