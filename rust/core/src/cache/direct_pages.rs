//! Embeddings straight from the pages of a file, where the pages hold them as they are in memory.
//!
//! A page of required or fully present float32 values in PLAIN encoding ends with those values,
//! four bytes each, little endian. What goes before, the levels, says which row each belongs to;
//! it is checked, not decoded into arrays, so a page costs little more than copying it. Anything
//! that is not so simple is left to the Arrow reader, which also finds the words for errors.
//!
//! Format: Apache Parquet, "Data Pages" and "RLE / Bit-Packing Hybrid".

use std::sync::Arc;

use bytes::{Buf, Bytes};
use parquet::basic::{Compression, Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::page_header::PageHeader;

/// The leaf column of the embeddings: column 0 is a single leaf, and lists have one.
const LEAF: usize = 1;

/// Copies a row group's embeddings into `target` (`rows x dim`, row-major).
///
/// Returns whether it could: `false` means that the pages are not of the simple kind and `target`
/// holds nothing of use.
pub(super) fn read_group<R: ChunkReader + 'static>(
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

/// A page of whole rows in a mapped file: its levels are checked, its values and checksum are not.
pub(super) struct PlainPage {
    /// Number of values.
    pub(super) count: usize,
    /// Four bytes each, little endian.
    pub(super) values: Bytes,
    /// All bytes that the checksum is made of.
    pub(super) whole: Bytes,
    pub(super) checksum: Option<u32>,
}

/// The pages of a row group's embeddings in a mapped file; `None` if they are not of the simple kind
/// or hold other than whole rows.
pub(super) fn map_group(
    file: &Bytes,
    group: &RowGroupMetaData,
    dim: usize,
) -> Option<Vec<PlainPage>> {
    let column = group.columns().get(LEAF)?;
    let descriptor = column.column_descr();
    let max_definition = u8::try_from(descriptor.max_def_level()).ok()?;
    let simple = column.column_type() == Type::FLOAT
        && column.compression() == Compression::UNCOMPRESSED
        && column.dictionary_page_offset().is_none()
        && descriptor.max_rep_level() == 1
        && dim > 0;
    if !simple {
        return None;
    }
    let start = usize::try_from(column.data_page_offset()).ok()?;
    let size = usize::try_from(column.compressed_size()).ok()?;
    let end = start.checked_add(size).filter(|end| *end <= file.len())?;
    let mut rest = file.slice(start..end);
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let header = PageHeader::read(&rest)?;
        rest.advance(header.length);
        let whole = take(&mut rest, header.size)?;
        let [values, definition, repetition] = header.encodings;
        let plain = [Encoding::PLAIN as i32, Encoding::RLE as i32, Encoding::RLE as i32];
        if [values, definition, repetition] != plain {
            return None;
        }
        let page = Plain::of_version_1(whole.clone(), header.values)?;
        if !page.count.is_multiple_of(dim) || !page.is_full(dim, 0, max_definition) {
            return None;
        }
        let Plain { count, values, .. } = page;
        pages.push(PlainPage { count, values, whole, checksum: header.checksum });
    }
    Some(pages)
}

/// Floats from their bytes, little endian.
pub(super) fn copy_values(bytes: &[u8], values: &mut [f32]) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// A data page in PLAIN encoding, taken apart.
struct Plain {
    count: usize,
    repetition: Bytes,
    definition: Bytes,
    values: Bytes,
}

impl Plain {
    fn of(page: Page) -> Option<Self> {
        match page {
            Page::DataPage {
                buf,
                num_values,
                encoding: Encoding::PLAIN,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                ..
            } => Self::of_version_1(buf, num_values),
            Page::DataPageV2 {
                mut buf,
                num_values,
                encoding: Encoding::PLAIN,
                rep_levels_byte_len,
                def_levels_byte_len,
                ..
            } => {
                let repetition = take(&mut buf, rep_levels_byte_len as usize)?;
                let definition = take(&mut buf, def_levels_byte_len as usize)?;
                let count = num_values as usize;
                Some(Self { count, repetition, definition, values: buf })
            }
            _ => None,
        }
    }

    /// The bytes of a page of version 1, its levels in the RLE / bit-packing hybrid.
    fn of_version_1(mut bytes: Bytes, count: u32) -> Option<Self> {
        let repetition = take_with_length(&mut bytes)?;
        let definition = take_with_length(&mut bytes)?;
        Some(Self { count: count as usize, repetition, definition, values: bytes })
    }

    /// Whether every value is there, in rows of `dim`; the page begins `position` values after its
    /// row group's start.
    fn is_full(&self, dim: usize, position: usize, max_definition: u8) -> bool {
        self.values.len() == self.count * size_of::<f32>()
            && all_equal(&self.definition, max_definition, self.count)
            && rows_begin_every(dim, position, &self.repetition, self.count)
    }
}

/// Cuts `length` bytes off the front.
fn take(buffer: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= buffer.len()).then(|| buffer.split_to(length))
}

/// Cuts off a piece with its length, four bytes little endian, before it.
fn take_with_length(buffer: &mut Bytes) -> Option<Bytes> {
    let length = take(buffer, 4)?;
    let length = u32::from_le_bytes(length.as_ref().try_into().ok()?);
    take(buffer, length as usize)
}

/// Whether `count` levels are all the highest: no list is null or empty, and no value is null.
fn all_equal(levels: &[u8], highest: u8, count: usize) -> bool {
    let width = 8 - highest.leading_zeros() as usize;
    let mut seen = 0;
    let complete = for_each_run(levels, width, count, |level, length| {
        seen += length;
        level == highest
    });
    complete && seen == count
}

/// Whether a new row begins at every multiple of `dim`, counted from the row group's start, and
/// nowhere else. The page begins `position` values after that start.
fn rows_begin_every(dim: usize, mut position: usize, levels: &[u8], count: usize) -> bool {
    let end = position + count;
    let complete = for_each_run(levels, 1, count, |level, length| {
        // A row begins where the level is 0; where it is 1, the row goes on.
        let left_of_row = (dim - position % dim) % dim;
        let right = match level {
            0 => left_of_row == 0 && (length == 1 || dim == 1),
            1 => length <= left_of_row,
            _ => false,
        };
        position += length;
        right
    });
    complete && position == end
}

/// Visits `count` levels in the RLE / bit-packing hybrid as (level, how many); ends early, with
/// `false`, if the visitor does or if the bytes are not of this form.
fn for_each_run(
    mut bytes: &[u8],
    width: usize,
    count: usize,
    mut visit: impl FnMut(u8, usize) -> bool,
) -> bool {
    let mut left = count;
    while left > 0 {
        let Some(header) = take_varint(&mut bytes) else { return false };
        let Ok(length) = usize::try_from(header >> 1) else { return false };
        if header & 1 == 0 {
            let size = width.div_ceil(8);
            let Some((value, rest)) = bytes.split_at_checked(size) else { return false };
            bytes = rest;
            let level = value.first().copied().unwrap_or(0);
            if length == 0 || length > left || !visit(level, length) {
                return false;
            }
            left -= length;
        } else {
            // Groups of eight levels, each group `width` bytes; the last may be filled up.
            let Some((packed, rest)) =
                length.checked_mul(width).and_then(|size| bytes.split_at_checked(size))
            else {
                return false;
            };
            bytes = rest;
            let levels = left.min(length.saturating_mul(8));
            if length == 0 || !(0..levels).all(|i| visit(bits(packed, i * width, width), 1)) {
                return false;
            }
            left -= levels;
        }
    }
    true
}

/// `width` bits from bit `start` on, least significant first.
fn bits(packed: &[u8], start: usize, width: usize) -> u8 {
    (0..width).fold(0, |value, i| {
        let bit = start + i;
        value | (((packed[bit / 8] >> (bit % 8)) & 1) << i)
    })
}

/// Takes an unsigned LEB128 number off the front.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use arrow_array::StringArray;
    use tempfile::TempDir;

    use super::super::file_writer::FileWriter;
    use super::super::footer::Footer;
    use super::super::identity::Identity;
    use super::super::row_file::RowFile;
    use super::super::storage::{self, Replaces};

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
            same_tokens: Vec::new(),
        };
        storage::write_atomically(folder.path(), &path, Replaces::Anything, |sink| {
            let mut writer = FileWriter::new(sink, dim)?;
            let states = StringArray::from_iter_values((0..rows).map(|i| i.to_string()));
            writer.append(&states, &values)?;
            writer.close(&footer)
        })
        .unwrap();
        let file = RowFile::open(&path).unwrap();
        let mut by_arrow = Vec::new();
        let mut directly = Vec::new();
        for (group, rows) in file.group_rows().iter().enumerate() {
            let mut target = vec![0.0; rows * dim];
            assert!(file.copy_group(group, &mut target).unwrap());
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
