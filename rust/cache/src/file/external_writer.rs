//! Writes a footer whose rows are in another file: a checkpoint of a file that still grows.
//!
//! Format: Apache Parquet, `ColumnChunk.file_path`. Any Parquet tool that follows it reads the rows.

use std::io::Write;
use std::sync::Arc;

use parquet::arrow::ArrowSchemaConverter;
use parquet::errors::Result;
use parquet::file::metadata::page_index::PageIndexBuilder;
use parquet::file::metadata::{
    FileMetaData, KeyValue, ParquetMetaDataBuilder, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::writer::TrackedWrite;

use crate::file::writer::{Group, created_by, write_error};
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::Footer;
use crate::format::schema::cache_schema;
use crate::storage::Sink;

/// What a Parquet file begins and ends with.
const MAGIC: &[u8] = b"PAR1";

/// Writes the footer of row groups that are in the file called `rows` beside this one.
pub(crate) fn write(
    mut sink: Sink,
    groups: Vec<Group>,
    rows: &str,
    footer: &Footer,
) -> CacheResult<Sink> {
    let entries = footer.to_metadata();
    let entries = entries.map_err(|error| CacheError::Argument(error.to_string()))?;
    let path = sink.path().to_owned();
    let bytes = encode(groups, rows, entries).map_err(|error| write_error(&path, error))?;
    sink.write_all(&bytes).map_err(|error| CacheError::io(&path, "write", error))?;
    Ok(sink)
}

fn encode(groups: Vec<Group>, rows: &str, entries: Vec<KeyValue>) -> Result<Vec<u8>> {
    let schema = Arc::new(ArrowSchemaConverter::new().convert(&cache_schema())?);
    let count = groups.iter().map(|group| group.metadata.num_rows()).sum();
    let metadata = FileMetaData::new(1, count, Some(created_by()), Some(entries), schema, None);
    let mut index = PageIndexBuilder::new(groups.len(), 2);
    let mut row_groups = Vec::with_capacity(groups.len());
    for (number, group) in groups.into_iter().enumerate() {
        row_groups.push(pointing_to(rows, group.metadata)?);
        for (column, pages) in group.pages.into_iter().enumerate() {
            if let Some(pages) = pages {
                index.put_offset_index(pages, number, column);
            }
        }
    }
    let metadata = ParquetMetaDataBuilder::new(metadata)
        .set_row_groups(row_groups)
        .set_page_index(Some(Arc::new(index.build())))
        .build();
    let mut bytes = Vec::new();
    let mut writer = TrackedWrite::new(&mut bytes);
    writer.write_all(MAGIC)?;
    ParquetMetaDataWriter::new_with_tracked(writer, &metadata).finish()?;
    Ok(bytes)
}

fn pointing_to(rows: &str, group: RowGroupMetaData) -> Result<RowGroupMetaData> {
    let columns = group
        .columns()
        .iter()
        .map(|column| column.clone().into_builder().set_file_path(rows.to_owned()).build());
    let columns = columns.collect::<Result<_>>()?;
    group.into_builder().set_column_metadata(columns).build()
}
