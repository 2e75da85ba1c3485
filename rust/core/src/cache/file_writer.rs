//! One cache file, written row group by row group, every page with a checksum.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, StringArray};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::{ColumnCloseResult, ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::ChunkReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use super::checked_pages::Chunk;
use super::error::{CacheError, CacheResult};
use super::footer::Footer;
use super::row_file::RowFile;
use super::schema::{EMBEDDING_COLUMN, ROW_GROUP_ROWS, cache_schema};
use super::storage::Sink;

/// Rows given to the encoder of levels and values at a time.
const AT_ONCE: usize = 64;
/// Row groups of fewer rows are better put together with others.
pub(super) const SMALL_GROUP: usize = ROW_GROUP_ROWS / 2;
/// Which software wrote a file, as its footer says: this, a space and the version.
pub(super) const CREATED_BY: &str = "ebm-encode";

/// Writes one file; what it holds is a cache only once [`FileWriter::close`] returned.
pub(super) struct FileWriter {
    path: PathBuf,
    writer: SerializedFileWriter<Sink>,
    schema: SchemaDescriptor,
    properties: WriterPropertiesPtr,
    group: Option<RowGroup>,
    levels: Levels,
    dim: usize,
    rows: u64,
    /// Where the pages of the row groups since the last [`FileWriter::sync`] are.
    pages: Vec<Pages>,
}

/// Where the pages of a row group's columns are.
type Pages = [Option<OffsetIndexMetaData>; 2];

/// A row group that stands in a file.
pub(super) struct Group {
    pub(super) metadata: RowGroupMetaData,
    pub(super) pages: Pages,
}

impl FileWriter {
    pub(super) fn new(sink: Sink, dim: usize) -> CacheResult<Self> {
        let path = sink.path().to_owned();
        let wrong = |error| write_error(&path, error);
        let arrow = cache_schema();
        let schema = ArrowSchemaConverter::new().convert(&arrow).map_err(wrong)?;
        let mut properties = properties();
        add_encoded_arrow_schema_to_metadata(&arrow, &mut properties);
        let properties = Arc::new(properties);
        let root = schema.root_schema_ptr();
        let writer = SerializedFileWriter::new(sink, root, properties.clone()).map_err(wrong)?;
        let (levels, pages) = (Levels::new(dim), Vec::new());
        Ok(Self { path, writer, schema, properties, group: None, levels, dim, rows: 0, pages })
    }

    /// Appends rows (`values` is `states.len() x dim`, row-major).
    pub(super) fn append(&mut self, states: &StringArray, values: &[f32]) -> CacheResult<()> {
        let rows = states.len();
        if rows.checked_mul(self.dim) != Some(values.len()) || states.null_count() > 0 {
            let (dim, found) = (self.dim, values.len());
            let message = format!("{rows} states of {dim} values each, but {found} values");
            return Err(CacheError::Argument(message));
        }
        let mut done = 0;
        while done < rows {
            let group =
                self.group.get_or_insert_with(|| RowGroup::new(&self.schema, &self.properties));
            let count = (rows - done).min(ROW_GROUP_ROWS - group.rows);
            let own = done..done + count;
            let texts = own.clone().map(|row| states.value(row));
            group
                .append(texts, &values[own.start * self.dim..own.end * self.dim], &self.levels)
                .map_err(|error| write_error(&self.path, error))?;
            done += count;
            if group.rows == ROW_GROUP_ROWS {
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
    pub(super) fn takes_group_of(&self, rows: usize) -> bool {
        let here = self.group.as_ref().map_or(0, |group| group.rows);
        (SMALL_GROUP..=ROW_GROUP_ROWS).contains(&rows) && !(1..SMALL_GROUP).contains(&here)
    }

    /// Appends a row group of another file of this writer, bytes for bytes; returns whether it could.
    pub(super) fn copy_group(&mut self, source: &RowFile, group: usize) -> CacheResult<bool> {
        let rows = source.group_rows()[group];
        let Some(columns) = source.encoded_columns(group) else { return Ok(false) };
        self.end_group()?;
        let input = source.ahead(group, &[0, 1])?;
        self.write_group(columns.map(|column| (input.clone(), column)))?;
        self.rows += rows as u64;
        Ok(true)
    }

    /// Appends rows as row groups of their own, none much smaller than the others.
    pub(super) fn append_groups(&mut self, states: &StringArray, values: &[f32]) -> CacheResult<()> {
        self.end_group()?;
        let groups = states.len().div_ceil(ROW_GROUP_ROWS).max(1);
        let rows = states.len().div_ceil(groups).max(1);
        for (start, values) in (0..).step_by(rows).zip(values.chunks(rows * self.dim)) {
            self.append(&states.slice(start, rows.min(states.len() - start)), values)?;
            self.end_group()?;
        }
        Ok(())
    }

    /// Waits until all rows so far are on the disk; returns the row groups since the last time.
    pub(super) fn sync(&mut self) -> CacheResult<Vec<Group>> {
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
    pub(super) fn bytes(&self) -> u64 {
        self.writer.inner().bytes()
    }

    /// Rows appended so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes the footer; gives back what was written into.
    pub(super) fn close(mut self, footer: &Footer) -> CacheResult<Sink> {
        self.end_group()?;
        let entries = footer.to_metadata();
        let entries = entries.map_err(|error| CacheError::Argument(error.to_string()))?;
        for entry in entries {
            self.writer.append_key_value_metadata(entry);
        }
        self.writer.into_inner().map_err(|error| write_error(&self.path, error))
    }

    fn end_group(&mut self) -> CacheResult<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let [text, lists] = group.columns.map(Column::close);
        let wrong = |error| write_error(&self.path, error);
        self.write_group([text.map_err(wrong)?, lists.map_err(wrong)?])
    }

    /// Writes a row group of encoded columns.
    fn write_group<R: ChunkReader>(
        &mut self,
        columns: [(R, ColumnCloseResult); 2],
    ) -> CacheResult<()> {
        let mut pages = columns.each_ref().map(|(_, column)| column.offset_index.clone());
        let from = columns.each_ref().map(|(_, column)| column.metadata.data_page_offset());
        let wrong = |error| write_error(&self.path, error);
        let mut row_group = self.writer.next_row_group().map_err(wrong)?;
        for (bytes, column) in columns {
            row_group.append_column(&bytes, column).map_err(wrong)?;
        }
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

/// The levels of rows in which no value is missing, [`AT_ONCE`] rows of them.
struct Levels {
    definition: Vec<i16>,
    repetition: Vec<i16>,
}

impl Levels {
    fn new(dim: usize) -> Self {
        let count = AT_ONCE * dim;
        let repetition = (0..count).map(|i| i16::from(i % dim != 0)).collect();
        Self { definition: vec![1; count], repetition }
    }
}

/// A row group under way: its columns are encoded in memory.
struct RowGroup {
    columns: [Column; 2],
    rows: usize,
}

struct Column {
    writer: ColumnWriter<'static>,
    chunk: Chunk,
}

impl RowGroup {
    fn new(schema: &SchemaDescriptor, properties: &WriterPropertiesPtr) -> Self {
        let columns = [0, 1].map(|i| {
            let chunk = Chunk::default();
            let pages = Box::new(chunk.clone());
            let writer = get_column_writer(schema.column(i), properties.clone(), pages);
            Column { writer, chunk }
        });
        Self { columns, rows: 0 }
    }

    fn append<'a>(
        &mut self,
        states: impl Iterator<Item = &'a str>,
        values: &[f32],
        levels: &Levels,
    ) -> Result<(), ParquetError> {
        let [text, lists] = &mut self.columns;
        let (ColumnWriter::ByteArrayColumnWriter(text), ColumnWriter::FloatColumnWriter(lists)) =
            (&mut text.writer, &mut lists.writer)
        else {
            unreachable!("the cache schema's columns are text and lists of float32")
        };
        let states: Vec<ByteArray> = states.map(ByteArray::from).collect();
        text.write_batch(&states, None, None)?;
        for values in values.chunks(levels.definition.len().max(1)) {
            let definition = &levels.definition[..values.len()];
            let repetition = &levels.repetition[..values.len()];
            lists.write_batch(values, Some(definition), Some(repetition))?;
        }
        self.rows += states.len();
        Ok(())
    }
}

impl Column {
    fn close(self) -> Result<(bytes::Bytes, ColumnCloseResult), ParquetError> {
        let closed = match self.writer {
            ColumnWriter::ByteArrayColumnWriter(writer) => writer.close()?,
            ColumnWriter::FloatColumnWriter(writer) => writer.close()?,
            _ => unreachable!("the cache schema's columns are text and lists of float32"),
        };
        Ok((self.chunk.take(), closed))
    }
}

/// What a footer says about the software that wrote it.
pub(super) fn created_by() -> String {
    format!("{CREATED_BY} {}", env!("CARGO_PKG_VERSION"))
}

/// States are compressed; embeddings are plain, since they hardly compress and are read often.
fn properties() -> WriterProperties {
    let embedding = ColumnPath::from(vec![
        EMBEDDING_COLUMN.to_owned(),
        "list".to_owned(),
        "element".to_owned(),
    ]);
    WriterProperties::builder()
        .set_created_by(created_by())
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_compression(embedding.clone(), Compression::UNCOMPRESSED)
        .set_column_encoding(embedding.clone(), Encoding::PLAIN)
        .set_column_dictionary_enabled(embedding, false)
        .set_dictionary_enabled(false)
        // Smallest and largest state or value would only make the footer larger.
        .set_statistics_enabled(EnabledStatistics::None)
        .build()
}

pub(super) fn write_error(path: &Path, error: ParquetError) -> CacheError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => CacheError::io(path, "write", *error),
            Err(error) => CacheError::format(path, format!("cannot write: {error}")),
        },
        error => CacheError::format(path, format!("cannot write: {error}")),
    }
}
