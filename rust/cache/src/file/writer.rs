//! One cache file, written row group by row group, every page with a checksum.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, StringBuilder};
use arrow_array::{Array, StringArray};
use bytes::Bytes;
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::{ColumnCloseResult, get_column_writer, get_typed_column_writer};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::ChunkReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::SchemaDescriptor;

use crate::file::reader::RowFile;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::Footer;
use crate::format::schema::{CREATED_BY, ROW_GROUP_ROWS, cache_schema};
use crate::page::checked::Chunk;
use crate::page::plain_chunk::PlainChunk;
use crate::storage::Sink;

/// Row groups of fewer rows are better put together with others.
const SMALL_GROUP: usize = ROW_GROUP_ROWS / 2;

/// Writes one file; what it holds is a cache only once [`FileWriter::close`] returned.
pub(crate) struct FileWriter {
    path: PathBuf,
    writer: SerializedFileWriter<Sink>,
    schema: SchemaDescriptor,
    properties: WriterPropertiesPtr,
    /// Rows that are not in a row group yet.
    states: StringBuilder,
    values: Vec<f32>,
    dim: usize,
    rows: u64,
    /// Where the pages of the row groups since the last [`FileWriter::sync`] are.
    pages: Vec<Pages>,
}

/// Where the pages of a row group's columns are.
type Pages = [Option<OffsetIndexMetaData>; 2];

/// A row group that stands in a file.
pub(crate) struct Group {
    pub(crate) metadata: RowGroupMetaData,
    pub(crate) pages: Pages,
}

impl FileWriter {
    pub(crate) fn new(sink: Sink, dim: usize) -> CacheResult<Self> {
        let path = sink.path().to_owned();
        let wrong = |error| write_error(&path, error);
        let arrow = cache_schema();
        let schema = ArrowSchemaConverter::new().convert(&arrow).map_err(wrong)?;
        let mut properties = properties();
        add_encoded_arrow_schema_to_metadata(&arrow, &mut properties);
        let properties = Arc::new(properties);
        let root = schema.root_schema_ptr();
        let writer = SerializedFileWriter::new(sink, root, properties.clone()).map_err(wrong)?;
        let (states, values, pages) = (StringBuilder::new(), Vec::new(), Vec::new());
        Ok(Self { path, writer, schema, properties, states, values, dim, rows: 0, pages })
    }

    /// Appends rows (`values` is `states.len() x dim`, row-major).
    pub(crate) fn append(&mut self, states: &StringArray, values: &[f32]) -> CacheResult<()> {
        let rows = states.len();
        if rows.checked_mul(self.dim) != Some(values.len()) || states.null_count() > 0 {
            let (dim, found) = (self.dim, values.len());
            let message = format!("{rows} states of {dim} values each, but {found} values");
            return Err(CacheError::Argument(message));
        }
        let mut done = 0;
        while done < rows {
            let count = (rows - done).min(ROW_GROUP_ROWS - self.states.len());
            let own = states.slice(done, count);
            let values = &values[done * self.dim..(done + count) * self.dim];
            done += count;
            if count == ROW_GROUP_ROWS {
                self.write_rows(&own, values)?;
                continue;
            }
            own.iter().flatten().for_each(|state| self.states.append_value(state));
            self.values.extend_from_slice(values);
            if self.states.len() == ROW_GROUP_ROWS {
                self.end_group()?;
            }
        }
        self.rows += rows as u64;
        Ok(())
    }

    /// Whether a row group of so many rows may be copied as it is.
    ///
    /// Small groups are not: their rows are better put together with others. A group under way here is
    /// ended, unless it is small itself.
    pub(crate) fn takes_group_of(&self, rows: usize) -> bool {
        let here = self.states.len();
        (SMALL_GROUP..=ROW_GROUP_ROWS).contains(&rows) && !(1..SMALL_GROUP).contains(&here)
    }

    /// Appends a row group of another file of this writer, bytes for bytes; returns whether it could.
    pub(crate) fn copy_group(&mut self, source: &RowFile, group: usize) -> CacheResult<bool> {
        let rows = source.group_rows()[group];
        let Some(columns) = source.encoded_columns(group) else { return Ok(false) };
        self.end_group()?;
        let input = source.ahead(group, &[0, 1])?;
        let [text, lists] = columns;
        self.write_group((&input, text), (&input, lists))?;
        self.rows += rows as u64;
        Ok(true)
    }

    /// Waits until all rows so far are on the disk; returns the row groups since the last time.
    pub(crate) fn sync(&mut self) -> CacheResult<Vec<Group>> {
        self.end_group()?;
        let wrong = |error| CacheError::io(&self.path, "write", error);
        self.writer.flush().map_err(wrong)?;
        self.writer.inner().sync()?;
        let pages = std::mem::take(&mut self.pages);
        let groups = self.writer.flushed_row_groups();
        let new = groups[groups.len() - pages.len()..].iter().cloned().zip(pages);
        Ok(new.map(|(metadata, pages)| Group { metadata, pages }).collect())
    }

    /// Bytes that [`FileWriter::sync`] has waited for.
    pub(crate) fn bytes(&self) -> u64 {
        self.writer.inner().bytes()
    }

    /// Rows appended so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes the footer; gives back what was written into.
    pub(crate) fn close(mut self, footer: &Footer) -> CacheResult<Sink> {
        self.end_group()?;
        let entries = footer.to_metadata();
        let entries = entries.map_err(|error| CacheError::Argument(error.to_string()))?;
        for entry in entries {
            self.writer.append_key_value_metadata(entry);
        }
        self.writer.into_inner().map_err(|error| write_error(&self.path, error))
    }

    fn end_group(&mut self) -> CacheResult<()> {
        let states = self.states.finish();
        if states.is_empty() {
            return Ok(());
        }
        let mut values = std::mem::take(&mut self.values);
        self.write_rows(&states, &values)?;
        values.clear();
        self.values = values;
        Ok(())
    }

    /// Writes rows as a row group.
    fn write_rows(&mut self, states: &StringArray, values: &[f32]) -> CacheResult<()> {
        let encode = || {
            let lists = PlainChunk::new(values, self.dim)?;
            let described = lists.describe(self.schema.column(1))?;
            Ok((self.encode_text(states)?, lists, described))
        };
        let ((text, closed), lists, described) =
            encode().map_err(|error| write_error(&self.path, error))?;
        self.write_group((&text, closed), (&&lists, described))
    }

    /// Encodes the states of a row group.
    fn encode_text(
        &self,
        states: &StringArray,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let chunk = Chunk::default();
        let pages = Box::new(chunk.clone());
        let column = get_column_writer(self.schema.column(0), self.properties.clone(), pages);
        let mut writer = get_typed_column_writer::<ByteArrayType>(column);
        let states: Vec<ByteArray> = states.iter().flatten().map(ByteArray::from).collect();
        writer.write_batch(&states, None, None)?;
        let mut closed = writer.close()?;
        // Copies of a row group are without them, and a cache has the same bytes however it came to be.
        closed.metadata = closed.metadata.into_builder().clear_page_encoding_stats().build()?;
        Ok((chunk.take(), closed))
    }

    /// Writes a row group of encoded columns.
    fn write_group(
        &mut self,
        (text, states): (&impl ChunkReader, ColumnCloseResult),
        (lists, embeddings): (&impl ChunkReader, ColumnCloseResult),
    ) -> CacheResult<()> {
        let columns = [&states, &embeddings];
        let mut pages = columns.map(|column| column.offset_index.clone());
        let from = columns.map(|column| column.metadata.data_page_offset());
        let wrong = |error| write_error(&self.path, error);
        let mut row_group = self.writer.next_row_group().map_err(wrong)?;
        row_group.append_column(text, states).map_err(wrong)?;
        row_group.append_column(lists, embeddings).map_err(wrong)?;
        let written = row_group.close().map_err(wrong)?;
        for ((pages, from), chunk) in pages.iter_mut().zip(from).zip(written.columns()) {
            for page in pages.iter_mut().flat_map(|pages| &mut pages.page_locations) {
                page.offset += chunk.data_page_offset() - from;
            }
        }
        self.pages.push(pages);
        Ok(())
    }
}

/// What a footer says about the software that wrote it.
pub(crate) fn created_by() -> String {
    format!("{CREATED_BY} {}", env!("CARGO_PKG_VERSION"))
}

/// States are compressed; embeddings are plain ([`PlainChunk`]).
fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_created_by(created_by())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        // The smallest and largest state would only make the footer larger.
        .set_statistics_enabled(EnabledStatistics::None)
        .build()
}

pub(crate) fn write_error(path: &Path, error: ParquetError) -> CacheError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => CacheError::io(path, "write", *error),
            Err(error) => CacheError::format(path, format!("cannot write: {error}")),
        },
        error => CacheError::format(path, format!("cannot write: {error}")),
    }
}
