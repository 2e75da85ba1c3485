//! Embeddings straight from the pages of a file, where the pages hold them as they are in memory.
//!
//! A page of required or fully present float32 values in PLAIN encoding ends with those values,
//! four bytes each, little endian. What goes before, the levels, says which row each belongs to;
//! it is checked, not decoded into arrays, so a page costs little more than copying it. Anything
//! that is not so simple is left to the Arrow reader, which also finds the words for errors.
//!
//! Format: Apache Parquet, "Data Pages".

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use crate::page::levels::Levels;

/// The leaf column of the embeddings: column 0 is a single leaf, and lists have one.
pub(crate) const LEAF: usize = 1;

/// Copies a row group's embeddings into `target` (`rows x dim`, row-major).
///
/// Returns whether it could: `false` means that the pages are not of the simple kind and `target`
/// holds nothing of use.
pub(crate) fn read_group<R: ChunkReader + 'static>(
    input: R,
    group: &RowGroupMetaData,
    dim: usize,
    target: &mut [f32],
) -> Result<bool, ParquetError> {
    let (Some(column), Ok(rows)) = (group.columns().get(LEAF), usize::try_from(group.num_rows()))
    else {
        return Ok(false);
    };
    let descriptor = column.column_descr();
    let levels = (descriptor.max_rep_level(), descriptor.max_def_level());
    let (1, Ok(max_definition)) = (levels.0, u8::try_from(levels.1)) else { return Ok(false) };
    if column.column_type() != Type::FLOAT || dim == 0 {
        return Ok(false);
    }
    let mut pages = SerializedPageReader::new(Arc::new(input), column, rows, None)?;
    let mut filled = 0;
    while let Some(page) = pages.get_next_page()? {
        let Some(page) = Plain::of(page) else { return Ok(false) };
        let count = page.count;
        if filled + count > target.len() || !page.is_full(dim, filled, max_definition) {
            return Ok(false);
        }
        copy_values(&page.values, &mut target[filled..filled + count]);
        filled += count;
    }
    Ok(filled == target.len())
}

/// Floats from their bytes, little endian.
pub(crate) fn copy_values(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// A data page in PLAIN encoding, taken apart.
struct Plain {
    count: usize,
    levels: Levels,
    values: Bytes,
}

impl Plain {
    fn of(page: Page) -> Option<Self> {
        match page {
            Page::DataPage {
                mut buf,
                num_values,
                encoding: Encoding::PLAIN,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                ..
            } => {
                let levels = Levels::with_lengths(&mut buf)?;
                Some(Self { count: num_values as usize, levels, values: buf })
            }
            Page::DataPageV2 {
                mut buf,
                num_values,
                encoding: Encoding::PLAIN,
                rep_levels_byte_len,
                def_levels_byte_len,
                ..
            } => {
                let lengths = [rep_levels_byte_len as usize, def_levels_byte_len as usize];
                let levels = Levels::of_lengths(&mut buf, lengths)?;
                Some(Self { count: num_values as usize, levels, values: buf })
            }
            _ => None,
        }
    }

    /// Whether every value is there, in rows of `dim`; the page begins `position` values after its
    /// row group's start.
    fn is_full(&self, dim: usize, position: usize, max_definition: u8) -> bool {
        self.values.len() == self.count * size_of::<f32>()
            && self.levels.are_of_full_rows(dim, position, self.count, max_definition)
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::StringArray;
    use tempfile::TempDir;

    use crate::file::reader::RowFile;
    use crate::file::writer::FileWriter;
    use crate::format::footer::Footer;
    use crate::format::identity::Identity;
    use crate::format::options::Checksums;
    use crate::storage::{self, Replaces, store_at};

    /// Without this the reader would still be right, but no longer fast.
    #[test]
    fn our_own_files_are_read_directly_and_equal_what_arrow_reads() {
        let folder = TempDir::new().unwrap();
        let (dim, rows) = (37_u16, 2500_u16);
        let count = u32::from(dim) * u32::from(rows);
        let values: Vec<f32> = (0..count).map(f32::from_bits).collect();
        let dim = usize::from(dim);
        let path = folder.path().join("a.parquet");
        let identity = r#"{"weights": "", "config": "", "tokenizer": "", "template": "",
            "special_tokens": "", "pooling": "", "layer": -1, "dtype": "", "quantization": "",
            "max_length": null, "truncation": ""}"#;
        let footer = Footer {
            format_version: 1,
            dim,
            rows: rows.into(),
            identity: Identity::from_json(identity).unwrap(),
            provenance: serde_json::Value::Null,
            runs: Vec::new(),
            same_tokens: Vec::new(),
            taken_back: Vec::new(),
            dead: Vec::new(),
        };
        let write = Box::new(|sink: storage::Sink| {
            let mut writer = FileWriter::new(sink, dim)?;
            let states = StringArray::from_iter_values((0..rows).map(|i| i.to_string()));
            writer.append(&states, &values)?;
            writer.close(&footer)
        });
        let store = store_at(&path).unwrap();
        store.write(folder.path(), storage::Size::Small, Replaces::Anything, write).unwrap();
        let file = RowFile::open(&path).unwrap();
        let mut by_arrow = Vec::new();
        let mut directly = Vec::new();
        for (group, rows) in file.group_rows().iter().enumerate() {
            let mut target = vec![0.0; rows * dim];
            let mut visited = Vec::new();
            let visit = &mut |first: usize, rows: &[f32]| {
                visited.truncate(first * file.dim());
                visited.extend_from_slice(rows);
            };
            assert!(file.copy_group(group, &mut target, Checksums::Verify, visit).unwrap());
            assert_eq!(visited, target);
            directly.extend(target);
            file.for_each_in_group(group, |rows| {
                by_arrow.extend(rows.values);
                Ok(())
            })
            .unwrap();
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&directly), bits(&values));
        assert_eq!(bits(&by_arrow), bits(&values));
    }
}
