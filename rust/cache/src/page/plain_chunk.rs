//! The embeddings of a row group as pages of whole rows, the values as they are in memory.
//!
//! They go from where they are to the file without a copy in between; `plain_pages` reads them so.
//! Format: Apache Parquet, data pages of version 1, "RLE / Bit-Packing Hybrid" for the levels.

use std::borrow::Cow;
use std::io::{self, Read};

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::{OffsetIndexMetaData, PageLocation};
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnDescPtr;

use crate::page::header::NewPage;

/// Bytes of values in a page, about; the size that writers of Parquet files usually choose.
const PAGE: usize = 1 << 20;

/// A column chunk: what stands before the values of each page, and the values.
pub(crate) struct PlainChunk<'a> {
    /// Header and levels of each page.
    heads: Vec<Vec<u8>>,
    /// Little endian, row-major.
    values: Cow<'a, [u8]>,
    /// Bytes of a row.
    row: usize,
    /// Rows of a page; of the last at most so many.
    rows: usize,
}

impl<'a> PlainChunk<'a> {
    /// Makes the pages of some rows of `dim` values.
    pub(crate) fn new(values: &'a [f32], dim: usize) -> Result<Self> {
        let row = dim * size_of::<f32>();
        let rows = (PAGE / row).max(1);
        let values: Cow<[u8]> = if cfg!(target_endian = "little") {
            Cow::Borrowed(bytemuck::cast_slice(values))
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let head = |values: &[u8]| head(values, values.len() / row, dim);
        let heads = values.chunks(rows * row).map(head).collect::<Result<_>>()?;
        Ok(Self { heads, values, row, rows })
    }

    /// Header and levels, and values, of each page.
    fn pages(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.heads.iter().map(Vec::as_slice).zip(self.values.chunks(self.rows * self.row))
    }

    /// What a footer says about the chunk; its places count from the chunk's start.
    pub(crate) fn describe(&self, column: ColumnDescPtr) -> Result<ColumnCloseResult> {
        let (mut page_locations, mut offset, mut rows) = (Vec::new(), 0, 0);
        for (head, values) in self.pages() {
            let size = head.len() + values.len();
            page_locations.push(PageLocation {
                offset,
                compressed_page_size: number(size)?,
                first_row_index: rows,
            });
            offset += i64::from(number(size)?);
            rows += i64::from(number(values.len() / self.row)?);
        }
        let values = self.values.len() / size_of::<f32>();
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(Compression::UNCOMPRESSED)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_total_compressed_size(offset)
            .set_total_uncompressed_size(offset)
            .set_num_values(i64::from(number(values)?))
            .set_data_page_offset(0)
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: self.len(),
            rows_written: rows.cast_unsigned(),
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(OffsetIndexMetaData {
                page_locations,
                unencoded_byte_array_data_bytes: None,
            }),
        })
    }
}

/// Header and levels of a page of `rows` rows in which nothing is missing.
fn head(values: &[u8], rows: usize, dim: usize) -> Result<Vec<u8>> {
    let count = rows * dim;
    let (mut repetition, mut definition) = (Vec::new(), Vec::new());
    if dim == 1 {
        push_run(&mut repetition, rows, 0);
    } else {
        for _ in 0..rows {
            push_run(&mut repetition, 1, 0);
            push_run(&mut repetition, dim - 1, 1);
        }
    }
    push_run(&mut definition, count, 1);
    let mut levels = Vec::new();
    for level in [repetition, definition] {
        levels.extend_from_slice(&number(level.len())?.to_le_bytes());
        levels.extend(level);
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&levels);
    checksum.update(values);
    let size = number(levels.len() + values.len())?;
    let page = NewPage {
        sizes: [size, size],
        checksum: checksum.finalize(),
        values: number(count)?,
        encodings: [Encoding::PLAIN, Encoding::RLE, Encoding::RLE],
    };
    let mut head = Vec::new();
    page.write_header(&mut head);
    head.extend(levels);
    Ok(head)
}

/// `count` times the same level of one bit.
fn push_run(out: &mut Vec<u8>, count: usize, level: u8) {
    let mut rest = count << 1;
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.extend([rest.to_le_bytes()[0], level]);
}

fn number(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| ParquetError::General(format!("{size} bytes in one page")))
}

impl Length for PlainChunk<'_> {
    fn len(&self) -> u64 {
        let heads: usize = self.heads.iter().map(Vec::len).sum();
        (heads + self.values.len()) as u64
    }
}

impl<'a> ChunkReader for &'a PlainChunk<'a> {
    type T = Pages<'a>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        if start != 0 {
            return Err(ParquetError::General("a chunk is read from its start".to_owned()));
        }
        Ok(Pages { chunk: self, page: 0, at: 0 })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = Vec::with_capacity(length);
        self.get_read(start)?.take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }
}

impl Length for &PlainChunk<'_> {
    fn len(&self) -> u64 {
        PlainChunk::len(self)
    }
}

/// The bytes of a chunk in their order.
pub(crate) struct Pages<'a> {
    chunk: &'a PlainChunk<'a>,
    page: usize,
    at: usize,
}

impl Read for Pages<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((head, values)) = self.chunk.pages().nth(self.page) else { return Ok(0) };
        let mut rest = match self.at.checked_sub(head.len()) {
            None => &head[self.at..],
            Some(at) => &values[at..],
        };
        let read = rest.read(buffer)?;
        self.at += read;
        if self.at == head.len() + values.len() {
            (self.page, self.at) = (self.page + 1, 0);
        }
        Ok(read)
    }
}
