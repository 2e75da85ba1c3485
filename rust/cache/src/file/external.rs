//! A footer whose rows are in another file: a checkpoint of a file that still grows.
//!
//! Format: Apache Parquet, `ColumnChunk.file_path`. Any Parquet tool that follows it reads the rows.

use std::path::{Component, Path};

use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use crate::format::error::{CacheError, CacheResult};

/// The name of the file that holds the rows of a footer; `None` if they are in the footer's own file.
///
/// # Errors
/// [`CacheError::Format`] if they are in several files, or in one that is not beside it.
pub(crate) fn file_of_rows<'a>(
    path: &Path,
    metadata: &'a ParquetMetaData,
) -> CacheResult<Option<&'a str>> {
    let columns = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    let mut names = columns.map(|column| column.file_path());
    let Some(first) = names.next() else { return Ok(None) };
    let beside = first.is_none_or(|name| {
        let mut steps = Path::new(name).components();
        matches!((steps.next(), steps.next()), (Some(Component::Normal(_)), None))
    });
    if !beside || names.any(|name| name != first) {
        let detail = "its rows are in other files, which is not supported; name those files";
        return Err(CacheError::format(path, detail));
    }
    Ok(first)
}
