//! Repetition and definition levels, checked without being decoded into arrays.
//!
//! Format: Apache Parquet, "RLE / Bit-Packing Hybrid".

use bytes::Bytes;

/// The levels of one page, encoded.
pub(crate) struct Levels {
    repetition: Bytes,
    definition: Bytes,
}

impl Levels {
    /// Cuts levels off the front of a page of version 1: each with its length before it.
    pub(crate) fn with_lengths(bytes: &mut Bytes) -> Option<Self> {
        let repetition = take_with_length(bytes)?;
        Some(Self { repetition, definition: take_with_length(bytes)? })
    }

    /// Cuts levels of known lengths (repetition, definition) off the front.
    pub(crate) fn of_lengths(bytes: &mut Bytes, lengths: [usize; 2]) -> Option<Self> {
        let repetition = take(bytes, lengths[0])?;
        Some(Self { repetition, definition: take(bytes, lengths[1])? })
    }

    /// Whether they say that rows of `dim` values are all there, `count` values in all; the page begins
    /// `position` values after its row group's start.
    pub(crate) fn are_of_full_rows(
        &self,
        dim: usize,
        position: usize,
        count: usize,
        max_definition: u8,
    ) -> bool {
        all_equal(&self.definition, max_definition, count)
            && rows_begin_every(dim, position, &self.repetition, count)
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
        // A row begins where the level is 0; where it is 1, the row continues.
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
