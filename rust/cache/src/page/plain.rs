//! Pages that are read by address: uncompressed, of whole rows, the values as they are in memory.
//!
//! So our writer lays them out. Their values go from the file straight to where they belong, or stay
//! where a map has them; headers and levels are checked before that.

use bytes::{Buf, Bytes};
use parquet::basic::{Compression, Encoding, Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::ChunkReader;

use crate::page::direct::{LEAF, copy_values};
use crate::page::header::PageHeader;
use crate::page::levels::Levels;
use crate::storage::open_file::OpenFile;

/// Bytes that are read for a page's header and levels at first.
const HEAD: usize = 1024;

/// A column chunk whose pages may be read by address.
struct Chunk {
    start: u64,
    length: usize,
    max_definition: u8,
}

impl Chunk {
    /// The embeddings of a row group; `None` where other than plain pages may be in them.
    fn of(group: &RowGroupMetaData, dim: usize) -> Option<Self> {
        let column = group.columns().get(LEAF)?;
        let descriptor = column.column_descr();
        let plain = column.column_type() == Type::FLOAT
            && column.compression() == Compression::UNCOMPRESSED
            && column.dictionary_page_offset().is_none()
            && descriptor.max_rep_level() == 1
            && dim > 0;
        let (start, length) = (column.data_page_offset(), column.compressed_size());
        plain.then_some(Self {
            start: u64::try_from(start).ok()?,
            length: usize::try_from(length).ok()?,
            max_definition: u8::try_from(descriptor.max_def_level()).ok()?,
        })
    }
}

impl PageHeader {
    /// Whether values and levels are encoded in the one way that is read here.
    fn is_plain(&self) -> bool {
        let [values, definition, repetition] = self.encodings;
        values == Encoding::PLAIN as i32
            && definition == Encoding::RLE as i32
            && repetition == Encoding::RLE as i32
    }
}

/// Reads a row group's embeddings from a file into `target` (`rows x dim`, row-major).
///
/// Returns whether it could: `false` means that the pages are not plain, and `target` holds nothing of
/// use. `visit` gets the number of a row in the group, and rows from there on that were just read.
pub(crate) fn read_group(
    file: &OpenFile,
    group: &RowGroupMetaData,
    dim: usize,
    target: &mut [f32],
    verify: bool,
    visit: &mut impl FnMut(usize, &[f32]),
) -> Result<bool, ParquetError> {
    let Some(chunk) = Chunk::of(group, dim) else { return Ok(false) };
    if cfg!(target_endian = "big") {
        return Ok(false); // values are little endian in the file
    }
    // What is not there needs no memory.
    if chunk.start.checked_add(chunk.length as u64).is_none_or(|end| end > file.len()) {
        return Ok(false);
    }
    let (mut at, mut left, mut filled, mut visited) = (chunk.start, chunk.length, 0, 0);
    let mut head = Vec::new();
    while left > 0 {
        head.resize(left.min(HEAD), 0);
        file.read_exact_at(&mut head, at)?;
        let Some(page) = PageHeader::read(&head).filter(PageHeader::is_plain) else {
            return Ok(false);
        };
        let count = page.values as usize;
        let bytes = count * size_of::<f32>();
        let (Some(levels), Some(whole)) =
            (page.size.checked_sub(bytes), page.length.checked_add(page.size))
        else {
            return Ok(false);
        };
        if whole > left || count > target.len() - filled {
            return Ok(false);
        }
        let read = head.len();
        head.resize(page.length + levels, 0);
        if head.len() > read {
            file.read_exact_at(&mut head[read..], at + read as u64)?;
        }
        let levels = &head[page.length..];
        let mut rest = Bytes::copy_from_slice(levels);
        let full = Levels::with_lengths(&mut rest).is_some_and(|levels| {
            levels.are_of_full_rows(dim, filled, count, chunk.max_definition)
        });
        if !full || !rest.is_empty() {
            return Ok(false);
        }
        let values = bytemuck::cast_slice_mut(&mut target[filled..filled + count]);
        file.read_exact_at(values, at + head.len() as u64)?;
        if verify && let Some(checksum) = page.checksum {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(levels);
            hasher.update(values);
            require(hasher.finalize() == checksum)?;
        }
        filled += count;
        // Pages of other software may end within a row.
        let rows = filled - filled % dim;
        visit(visited / dim, &target[visited..rows]);
        visited = rows;
        at += whole as u64;
        left -= whole;
    }
    Ok(filled == target.len())
}

/// Copies a row group's embeddings from a file in memory.
///
/// Returns whether it could, as [`read_group`] does.
pub(crate) fn copy_group(
    input: &impl ChunkReader,
    group: &RowGroupMetaData,
    dim: usize,
    target: &mut [f32],
    verify: bool,
) -> Result<bool, ParquetError> {
    let Some(chunk) = Chunk::of(group, dim) else { return Ok(false) };
    let bytes = input.get_bytes(chunk.start, chunk.length)?;
    let Some(pages) = pages_of(bytes, &chunk, dim) else { return Ok(false) };
    if pages.iter().map(|page| page.count).sum::<usize>() != target.len() {
        return Ok(false);
    }
    let mut rest = target;
    for page in pages {
        require(!verify || page.is_whole())?;
        let (values, others) = rest.split_at_mut(page.count);
        copy_values(&page.values, values);
        rest = others;
    }
    Ok(true)
}

fn require(whole: bool) -> Result<(), ParquetError> {
    if whole {
        return Ok(());
    }
    Err(ParquetError::General("page checksum mismatch (CRC)".to_owned()))
}

/// A page of whole rows in memory: its levels are checked, its values and checksum are not.
pub(crate) struct PlainPage {
    /// Number of values.
    pub(crate) count: usize,
    /// Four bytes each, little endian.
    pub(crate) values: Bytes,
    /// All bytes that the checksum is made of.
    whole: Bytes,
    checksum: Option<u32>,
}

impl PlainPage {
    /// Whether the bytes are those that the checksum was made of; pages without one are taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.checksum.is_none_or(|checksum| crc32fast::hash(&self.whole) == checksum)
    }
}

/// The pages of a row group's embeddings in a mapped file; `None` if they are not plain.
pub(crate) fn map_group(
    file: &Bytes,
    group: &RowGroupMetaData,
    dim: usize,
) -> Option<Vec<PlainPage>> {
    let chunk = Chunk::of(group, dim)?;
    let start = usize::try_from(chunk.start).ok()?;
    let end = start.checked_add(chunk.length).filter(|end| *end <= file.len())?;
    pages_of(file.slice(start..end), &chunk, dim)
}

/// The pages of a column chunk; `None` if they are not plain.
fn pages_of(mut bytes: Bytes, chunk: &Chunk, dim: usize) -> Option<Vec<PlainPage>> {
    let mut pages = Vec::new();
    while !bytes.is_empty() {
        let page = PageHeader::read(&bytes).filter(PageHeader::is_plain)?;
        bytes.advance(page.length);
        let whole = (page.size <= bytes.len()).then(|| bytes.split_to(page.size))?;
        let (mut values, count) = (whole.clone(), page.values as usize);
        let levels = Levels::with_lengths(&mut values)?;
        let full = values.len() == count * size_of::<f32>()
            && count.is_multiple_of(dim)
            && levels.are_of_full_rows(dim, 0, count, chunk.max_definition);
        if !full {
            return None;
        }
        pages.push(PlainPage { count, values, whole, checksum: page.checksum });
    }
    Some(pages)
}
