//! The pages of a file as they stand in it: copied without a decoder.

use parquet::column::writer::ColumnCloseResult;

use crate::file::failures::{guard, in_group};
use crate::file::reader::RowFile;
use crate::format::error::{CacheError, CacheResult};
use crate::format::options::Checksums;
use crate::page::direct;
use crate::page::plain::{self, PlainPage};
use crate::storage::input::Input;

impl RowFile {
    /// Copies a row group's embeddings into `target` if its pages allow it; returns whether they do.
    /// `visit` gets the number of a row in the group, and rows from there on that were just read; if it
    /// gets rows again, those it got before were not the group's.
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

    /// The file with these columns of a row group loaded.
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
}
