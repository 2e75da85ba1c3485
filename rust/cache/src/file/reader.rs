//! One Parquet file as a stream of (states, rows), whoever wrote it.
//!
//! Columns go by position: column 0 text, column 1 lists of floating-point numbers. The Arrow
//! schema that writers embed in the footer is set aside on purpose: what it calls `large_list`,
//! `fixed_size_list`, `large_utf8`, string views or dictionaries is the same Parquet underneath.

use std::path::{Path, PathBuf};

use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::{ChunkReader, Length};

use crate::file::external::file_of_rows;
use crate::file::failures::{guard, not_parquet, unreadable};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::{self, Footer};
use crate::format::schema::{CREATED_BY, METADATA_KEY};
use crate::storage::input::Input;
use crate::storage::{mapping, store_at};

/// An opened cache file: its footer is read and its columns are of the right types.
#[derive(Debug)]
pub struct RowFile {
    pub(super) path: PathBuf,
    pub(super) input: Input,
    pub(super) metadata: ArrowReaderMetadata,
    pub(super) footer: Option<Footer>,
    /// Whether our writer wrote it, so that it has our writer's layout.
    pub(super) ours: bool,
    pub(super) group_rows: Vec<usize>,
    pub(super) dim: usize,
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

    /// Length of every embedding; 0 for a file without rows and without our footer.
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
    pub(super) fn first_of(&self, group: usize) -> u64 {
        let before = self.group_rows[..group].iter();
        before.fold(0, |sum: u64, rows| sum.saturating_add(*rows as u64))
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

    pub(super) fn damaged(&self, error: &ParquetError) -> CacheError {
        unreadable(&self.path, &self.input, error, "damaged Parquet file")
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
