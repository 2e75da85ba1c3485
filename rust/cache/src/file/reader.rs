//! One Parquet file as a stream of (states, rows), whoever wrote it.
//!
//! Columns go by position: column 0 text, column 1 lists of floating-point numbers. The Arrow
//! schema that writers embed in the footer is set aside on purpose: what it calls `large_list`,
//! `fixed_size_list`, `large_utf8`, string views or dictionaries is the same Parquet underneath.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ListArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{ChunkReader, Length};

use crate::file::external::file_of_rows;
use crate::file::rows::Rows;
use crate::file::sound::{self, Sound};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::{self, Footer};
use crate::format::options::Checksums;
use crate::format::schema::CREATED_BY;
use crate::format::schema::METADATA_KEY;
use crate::page::direct;
use crate::page::plain::{self, PlainPage};
use crate::storage::input::Input;
use crate::storage::mapping;
use crate::storage::store_at;

/// Rows decoded at a time: 16 MiB at dimension 4,096.
const BATCH_ROWS: usize = 1024;
/// The columns of states and embeddings.
const BOTH: [usize; 2] = [0, 1];

/// An opened cache file: its footer is read and its columns are of the right types.
#[derive(Debug)]
pub struct RowFile {
    path: PathBuf,
    input: Input,
    metadata: ArrowReaderMetadata,
    footer: Option<Footer>,
    /// Whether our writer wrote it, so that it has our writer's layout.
    ours: bool,
    group_rows: Vec<usize>,
    dim: usize,
}

impl RowFile {
    /// Opens a file on disk.
    ///
    /// # Errors
    /// [`CacheError::NotFound`], [`CacheError::Io`], or [`CacheError::Format`] for a file that is
    /// not Parquet, is damaged, or has other columns.
    pub fn open(path: impl AsRef<Path>) -> CacheResult<Self> {
        let path = path.as_ref();
        Self::load(path, store_at(path)?.open()?, PageIndexPolicy::Skip, no_other_file(path))
    }

    /// Opens a file whose row groups may be copied as they are.
    pub(crate) fn open_source(path: &Path) -> CacheResult<Self> {
        Self::load(path, store_at(path)?.open()?, PageIndexPolicy::Optional, no_other_file(path))
    }

    /// Opens a checkpoint: a file, or a footer whose rows are in a file beside it. `open_rows` gets that
    /// file's path.
    pub(crate) fn open_checkpoint(
        path: &Path,
        open_rows: impl FnOnce(&Path) -> CacheResult<Input>,
    ) -> CacheResult<Self> {
        let open_rows = |name: &str| open_rows(&path.with_file_name(name));
        Self::load(path, store_at(path)?.open()?, PageIndexPolicy::Optional, open_rows)
    }

    /// Opens a file held in memory; `name` stands for its path in errors.
    ///
    /// # Errors
    /// [`CacheError::Format`] as for [`RowFile::open`].
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Bytes) -> CacheResult<Self> {
        let name = name.as_ref();
        Self::load(name, Input::Bytes(bytes), PageIndexPolicy::Skip, no_other_file(name))
    }

    /// Opens a file on disk as memory.
    pub(crate) fn open_mapped(path: &Path) -> CacheResult<Self> {
        let input = match store_at(path)?.open()? {
            Input::File(file) => {
                let file = file.file().map_err(|error| CacheError::io(path, "open", error))?;
                Input::Bytes(mapping::map(path, &file)?)
            }
            Input::Object(_) | Input::Piece(..) => {
                let detail = "is in an object store, so it cannot be mapped; open it in memory";
                return Err(CacheError::format(path, detail));
            }
            bytes @ Input::Bytes(_) => bytes,
        };
        Self::load(path, input, PageIndexPolicy::Skip, no_other_file(path))
    }

    fn load(
        path: &Path,
        input: Input,
        pages: PageIndexPolicy,
        open_rows: impl FnOnce(&str) -> CacheResult<Input>,
    ) -> CacheResult<Self> {
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_offset_index_policy(pages);
        let metadata = guard(path, || {
            ArrowReaderMetadata::load(&input, options).map_err(|e| not_parquet(path, &input, &e))
        })?;
        check_columns(path, &metadata)?;
        let parquet = metadata.metadata();
        let footer = Footer::from_metadata(parquet.file_metadata().key_value_metadata())
            .map_err(|detail| CacheError::format(path, detail))?;
        let rows = |rows: i64| {
            usize::try_from(rows)
                .map_err(|_| CacheError::format(path, format!("a row group of {rows} rows")))
        };
        let group_rows: Vec<usize> = parquet
            .row_groups()
            .iter()
            .map(|group| rows(group.num_rows()))
            .collect::<Result<_, _>>()?;
        if footer.is_none() && footer::mentions_ours(&metadata_bytes(path, &input)?) {
            let detail = format!("damaged: its metadata has lost {METADATA_KEY:?}");
            return Err(CacheError::format(path, detail));
        }
        let ours =
            parquet.file_metadata().created_by().is_some_and(|by| by.starts_with(CREATED_BY));
        let input = match file_of_rows(path, parquet)? {
            Some(name) => open_rows(name)?,
            None => input,
        };
        let path = path.to_owned();
        let mut file = Self { path, input, metadata, footer, ours, group_rows, dim: 0 };
        file.require_own_rows()?;
        file.dim = file.find_dim()?;
        Ok(file)
    }

    /// A file of our writer says itself how many rows it has; other software may have kept our
    /// footer and taken rows out.
    fn require_own_rows(&self) -> CacheResult<()> {
        match &self.footer {
            Some(footer) if self.ours && footer.rows != self.num_rows() as u64 => {
                let (found, expected) = (self.num_rows(), footer.rows);
                let detail = format!("damaged: has {found} rows, its footer says {expected}");
                Err(CacheError::format(&self.path, detail))
            }
            _ => Ok(()),
        }
    }

    /// The file's path, or the name given for it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says about itself; `None` where other software wrote it.
    #[must_use]
    pub fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }

    /// Length of every row; 0 for a file without rows and without our footer.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows by row group, as the Parquet metadata counts them.
    #[must_use]
    pub fn group_rows(&self) -> &[usize] {
        &self.group_rows
    }

    /// The name and type of each column, in the file's order.
    #[must_use]
    pub fn columns(&self) -> Vec<(String, String)> {
        let fields = self.metadata.schema().fields();
        fields.iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
    }

    /// Rows of the whole file, as the Parquet metadata counts them.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.group_rows.iter().fold(0, |sum, rows| sum.saturating_add(*rows))
    }

    /// The number of a row group's first row; what a damaged file claims may be any number.
    fn first_of(&self, group: usize) -> u64 {
        let before = self.group_rows[..group].iter();
        before.fold(0, |sum: u64, rows| sum.saturating_add(*rows as u64))
    }

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

    /// Copies a row group's embeddings into `target` if its pages allow it; returns whether they do.
    /// `visit` gets the number of a row in the group, and rows from there on that were just read; if it
    /// gets rows anew, those it got before were not the group's.
    ///
    /// The checksums of pages that are not plain are verified in any case.
    pub(crate) fn copy_group(
        &self,
        group: usize,
        target: &mut [f32],
        checksums: Checksums,
        visit: &mut impl FnMut(usize, &[f32]),
    ) -> CacheResult<bool> {
        let verify = checksums == Checksums::Verify;
        let copied = guard(&self.path, || {
            let metadata = self.metadata.metadata().row_group(group);
            let input = self.ahead(group, &[1])?;
            let wrong = |error| self.damaged(&error);
            let copied = match &input {
                Input::File(file) => {
                    if plain::read_group(file, metadata, self.dim, target, verify, visit)
                        .map_err(wrong)?
                    {
                        return Ok(true);
                    }
                    false
                }
                input => {
                    plain::copy_group(input, metadata, self.dim, target, verify).map_err(wrong)?
                }
            };
            let copied =
                copied || direct::read_group(input, metadata, self.dim, target).map_err(wrong)?;
            if copied {
                visit(0, target);
            }
            Ok(copied)
        });
        match copied {
            // Another reading of pages that our writer did not make so would be a guess.
            Ok(false) if self.ours && !target.is_empty() => {
                let detail = "damaged Parquet file: not laid out as its writer does";
                Err(in_group(group, CacheError::format(&self.path, detail)))
            }
            copied => copied.map_err(|error| in_group(group, error)),
        }
    }

    /// Whether our writer wrote the file.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours
    }

    /// The file's bytes.
    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    /// Whether the file is in an object store.
    pub(crate) fn is_object(&self) -> bool {
        self.input.is_object()
    }

    /// The file's size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.input.len()
    }

    /// The file with these columns of a row group at hand.
    pub(crate) fn ahead(&self, group: usize, columns: &[usize]) -> CacheResult<Input> {
        let chunks = self.metadata.metadata().row_group(group).columns();
        let ranges = columns.iter().filter_map(|column| Some(chunks.get(*column)?.byte_range()));
        let (start, end) = ranges.fold((u64::MAX, 0), |(start, end), (from, length)| {
            (start.min(from), end.max(from.saturating_add(length)))
        });
        self.input.ahead(start..end).map_err(|error| self.damaged(&error))
    }

    /// The columns of a row group as they stand in the file, to be copied into another; `None` where
    /// our writer did not write them, or their pages' places were not read.
    pub(crate) fn encoded_columns(&self, group: usize) -> Option<[ColumnCloseResult; 2]> {
        let metadata = self.metadata.metadata();
        let pages = metadata.page_index()?;
        let (chunks, rows) = (metadata.row_group(group).columns(), self.group_rows[group] as u64);
        if !self.ours || chunks.len() != 2 {
            return None;
        }
        let column = |i: usize| {
            Some(ColumnCloseResult {
                bytes_written: u64::try_from(chunks[i].compressed_size()).ok()?,
                rows_written: rows,
                metadata: chunks[i].clone(),
                bloom_filter: None,
                column_index: None,
                offset_index: Some(pages.offset_index(group, i)?.clone()),
            })
        };
        Some([column(0)?, column(1)?])
    }

    /// The pages of a row group's embeddings, if the file is mapped and holds them as they are in
    /// memory.
    pub(crate) fn plain_pages(&self, group: usize) -> CacheResult<Vec<PlainPage>> {
        let metadata = self.metadata.metadata().row_group(group);
        let pages = match &self.input {
            Input::Bytes(bytes) => {
                guard(&self.path, || Ok(plain::map_group(bytes, metadata, self.dim)))?
            }
            Input::File(..) | Input::Object(_) | Input::Piece(..) => None,
        };
        let wrong = if self.ours { "damaged" } else { "cannot be mapped; open it in memory" };
        pages.ok_or_else(|| {
            let detail = format!("{wrong}: its pages do not hold whole rows as they are in memory");
            in_group(group, CacheError::format(&self.path, detail))
        })
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

    fn damaged(&self, error: &ParquetError) -> CacheError {
        unreadable(&self.path, &self.input, error, "damaged Parquet file")
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
    fn find_dim(&self) -> CacheResult<usize> {
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

/// Refuses a footer whose rows are elsewhere.
fn no_other_file(path: &Path) -> impl FnOnce(&str) -> CacheResult<Input> {
    move |name| {
        let detail = format!(
            "is a checkpoint of an unfinished run, its rows are in {name:?}\n\
                 hint: run the same command again to finish the cache, then name the finished cache"
        );
        Err(CacheError::format(path, detail))
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

/// Runs a step of the Parquet reader; a panic in it becomes an error about the file.
///
/// The reader is sound on any bytes but not free of panics; no panic may reach our callers.
#[cfg_attr(not(feature = "parquet"), expect(unreachable_pub, reason = "public by a feature"))]
pub fn guard<T>(path: &Path, step: impl FnOnce() -> CacheResult<T>) -> CacheResult<T> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
        let reason = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the decoder gave up");
        Err(CacheError::format(path, format!("damaged Parquet file: {reason}")))
    })
}

/// The bytes of a file's metadata: those that its last eight tell the length of.
fn metadata_bytes(path: &Path, input: &Input) -> CacheResult<Bytes> {
    const TAIL: u64 = 8;
    let read = |start: u64, length: u64| {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        input.get_bytes(start, length).map_err(|error| not_parquet(path, input, &error))
    };
    let size = input.len();
    let tail = read(size.saturating_sub(TAIL), TAIL.min(size))?;
    let length = tail.first_chunk::<4>().map_or(0, |length| u64::from(u32::from_le_bytes(*length)));
    let start = size.saturating_sub(TAIL).saturating_sub(length);
    read(start, size.saturating_sub(TAIL).min(length))
}

/// Says in which row group a file is damaged.
fn in_group(group: usize, error: CacheError) -> CacheError {
    match error {
        CacheError::Format { path, detail } => {
            CacheError::Format { path, detail: format!("row group {group}: {detail}") }
        }
        error => error,
    }
}

fn not_parquet(path: &Path, input: &Input, error: &ParquetError) -> CacheError {
    if input.failure().is_none() && error.to_string().contains("invalid utf8") {
        let detail = "its metadata holds a text that is not UTF-8 (who wrote it, a key or a column)\n\
                      hint: write the file again, with pyarrow for example";
        return CacheError::format(path, detail);
    }
    unreadable(path, input, error, "not a Parquet file, or cut off")
}

/// What kept a file from being read: what is in it, or a disk or a store that did not answer.
fn unreadable(path: &Path, input: &Input, error: &ParquetError, what: &str) -> CacheError {
    match input.failure() {
        Some(failure) => CacheError::io(path, "read", failure),
        None => CacheError::format(path, format!("{what}: {error}")),
    }
}

fn check_columns(path: &Path, metadata: &ArrowReaderMetadata) -> CacheResult<()> {
    let fields = metadata.schema().fields();
    if fields.len() < 2 {
        let found = fields.len();
        let detail = format!("has {found} column(s), expected column 0 text and column 1 lists");
        return Err(CacheError::format(path, detail));
    }
    let (state, embedding) = (&fields[0], &fields[1]);
    if state.data_type() != &DataType::Utf8 {
        let (name, found) = (state.name(), state.data_type());
        let detail = format!("column 0 ({name}) is {found}, expected text (utf8)");
        return Err(CacheError::format(path, detail));
    }
    let number = match embedding.data_type() {
        DataType::List(element) => Some(element.data_type()),
        _ => None,
    };
    if !matches!(number, Some(DataType::Float16 | DataType::Float32 | DataType::Float64)) {
        let (name, found) = (embedding.name(), embedding.data_type());
        let detail = format!("column 1 ({name}) is {found}, expected lists of float16/32/64");
        return Err(CacheError::format(path, detail));
    }
    Ok(())
}
