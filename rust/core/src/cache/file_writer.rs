//! One cache file, written row group by row group.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Float32Array, ListArray, RecordBatch, StringArray};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::error::{CacheError, CacheResult};
use super::footer::Footer;
use super::schema::{EMBEDDING_COLUMN, ROW_GROUP_ROWS, cache_schema};

/// Writes one file; what it holds is a cache only once [`FileWriter::close`] returned.
pub(super) struct FileWriter {
    path: PathBuf,
    file: File,
    schema: SchemaRef,
    writer: ArrowWriter<File>,
    dim: usize,
    rows: u64,
}

impl FileWriter {
    pub(super) fn create(path: &Path, dim: usize) -> CacheResult<Self> {
        let create = |error| CacheError::io(path, "create", error);
        let file = File::create(path).map_err(create)?;
        let schema = cache_schema();
        let writer = file.try_clone().map_err(create).and_then(|file| {
            ArrowWriter::try_new(file, schema.clone(), Some(properties()))
                .map_err(|error| write_error(path, error))
        })?;
        Ok(Self { path: path.to_owned(), file, schema, writer, dim, rows: 0 })
    }

    /// Appends rows (`values` is `states.len() x dim`, row-major).
    pub(super) fn append(&mut self, states: StringArray, values: Vec<f32>) -> CacheResult<()> {
        let rows = states.len();
        let DataType::List(element) = self.schema.field(1).data_type() else {
            unreachable!("the cache schema's column 1 is a list")
        };
        let offsets = OffsetBuffer::from_repeated_length(self.dim, rows);
        let values: ArrayRef = Arc::new(Float32Array::from(values));
        let lists = ListArray::try_new(element.clone(), offsets, values, None);
        let batch = lists.and_then(|lists| {
            RecordBatch::try_new(self.schema.clone(), vec![Arc::new(states), Arc::new(lists)])
        });
        let batch = batch.map_err(|error| CacheError::Argument(error.to_string()))?;
        self.writer.write(&batch).map_err(|error| write_error(&self.path, error))?;
        self.rows += rows as u64;
        Ok(())
    }

    /// Rows appended so far.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes the footer and waits until the file is on the disk.
    pub(super) fn close(mut self, footer: &Footer) -> CacheResult<()> {
        let entries = footer.to_metadata();
        let entries = entries.map_err(|error| CacheError::Argument(error.to_string()))?;
        for entry in entries {
            self.writer.append_key_value_metadata(entry);
        }
        self.writer.close().map_err(|error| write_error(&self.path, error))?;
        self.file.sync_all().map_err(|error| CacheError::io(&self.path, "write", error))
    }
}

/// States are compressed; embeddings are plain, since they hardly compress and are read often.
fn properties() -> WriterProperties {
    let embedding = ColumnPath::from(vec![
        EMBEDDING_COLUMN.to_owned(),
        "list".to_owned(),
        "element".to_owned(),
    ]);
    WriterProperties::builder()
        .set_created_by(concat!("ebm-encode ", env!("CARGO_PKG_VERSION")).to_owned())
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

fn write_error(path: &Path, error: ParquetError) -> CacheError {
    match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(error) => CacheError::io(path, "write", *error),
            Err(error) => CacheError::format(path, format!("cannot write: {error}")),
        },
        error => CacheError::format(path, format!("cannot write: {error}")),
    }
}
