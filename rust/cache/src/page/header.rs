//! The header before a data page, as far as it is read and written by address.
//!
//! Format: Apache Parquet, `parquet.thrift`, `PageHeader` in Thrift's compact protocol.

#[cfg(feature = "writer")]
use parquet::basic::{Encoding, PageType};

#[cfg(feature = "writer")]
use crate::page::compact::Writer;
use crate::page::compact::{Reader, Type};

/// A data page of version 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    /// Bytes of the header itself.
    pub(crate) length: usize,
    /// Bytes of the page after it.
    pub(crate) size: usize,
    /// CRC-32 of those bytes.
    pub(crate) checksum: Option<u32>,
    /// Values in the page.
    pub(crate) values: u32,
    /// Codes of the encodings of values, definition levels and repetition levels.
    pub(crate) encodings: [i32; 3],
}

impl PageHeader {
    /// Reads the header at the start of some bytes; `None` for anything but a data page of version 1.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        let (mut kind, mut sizes, mut checksum, mut page) = (None, [None; 2], None, None);
        input.fields(|input, number, field| {
            match (number, field) {
                (1, Type::I32) => kind = Some(input.i32()?),
                (2 | 3, Type::I32) => sizes[usize::from(number == 3)] = Some(input.i32()?),
                (4, Type::I32) => checksum = Some(input.i32()?.cast_unsigned()),
                (5, Type::Struct) => page = Some(data_page(input)?),
                (_, other) => input.skip_value(other)?,
            }
            Some(())
        })?;
        let [values, encodings @ ..] = page?;
        let (Some(0), [Some(uncompressed), Some(size)]) = (kind, sizes) else { return None };
        let size = usize::try_from(size).ok().filter(|_| size == uncompressed)?;
        let (length, values) = (input.position(), u32::try_from(values).ok()?);
        Some(Self { length, size, checksum, values, encodings })
    }
}

/// The four numbers of a `DataPageHeader`.
fn data_page(input: &mut Reader<'_>) -> Option<[i32; 4]> {
    let mut numbers = [None; 4];
    input.fields(|input, number, field| {
        let place = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        match (place.and_then(|place| numbers.get_mut(place)), field) {
            (Some(number), Type::I32) => *number = Some(input.i32()?),
            (_, other) => input.skip_value(other)?,
        }
        Some(())
    })?;
    let [Some(a), Some(b), Some(c), Some(d)] = numbers else { return None };
    Some([a, b, c, d])
}

/// A data page of version 1 that is written.
#[cfg(feature = "writer")]
pub(crate) struct NewPage {
    /// Bytes before and after compression.
    pub(crate) sizes: [i32; 2],
    /// CRC-32 of the bytes as they are written.
    pub(crate) checksum: u32,
    /// Values in the page.
    pub(crate) values: i32,
    /// Those of values, definition levels and repetition levels.
    pub(crate) encodings: [Encoding; 3],
}

#[cfg(feature = "writer")]
impl NewPage {
    /// Writes the page's header.
    pub(crate) fn write_header(&self, out: &mut Vec<u8>) {
        let mut header = Writer::new(out);
        header.i32(1, PageType::DATA_PAGE as i32);
        header.i32(2, self.sizes[0]);
        header.i32(3, self.sizes[1]);
        header.i32(4, self.checksum.cast_signed());
        let mut page = header.begin(5);
        page.i32(1, self.values);
        for (number, encoding) in (2..).zip(self.encodings) {
            page.i32(number, encoding as i32);
        }
        page.end();
        header.end();
    }
}

#[cfg(all(test, feature = "writer"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            size in 0..i32::MAX,
            checksum: u32,
            values in 0..i32::MAX,
            rest: Vec<u8>,
        ) {
            let encodings = [Encoding::PLAIN, Encoding::RLE, Encoding::RLE];
            let mut bytes = Vec::new();
            NewPage { sizes: [size; 2], checksum, values, encodings }.write_header(&mut bytes);
            let length = bytes.len();
            bytes.extend(rest);
            let read = PageHeader::read(&bytes).unwrap();
            prop_assert_eq!((read.length, read.checksum), (length, Some(checksum)));
            prop_assert_eq!(i32::try_from(read.size).unwrap(), size);
            prop_assert_eq!(i32::try_from(read.values).unwrap(), values);
            prop_assert_eq!(read.encodings, encodings.map(|encoding| encoding as i32));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = PageHeader::read(&bytes);
        }
    }

    #[test]
    fn fields_of_other_types_are_skipped() {
        // A struct with a list of two structs, a map, a text and a double before field 5 of the header.
        let mut bytes = vec![0x15, 0, 0x15, 8, 0x15, 8]; // kind 0, both sizes 4
        bytes.extend([0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0]); // field 5: 1 value, encodings
        bytes.extend([0x19, 0x2c, 0x15, 2, 0, 0]); // field 6: a list of two structs
        bytes.extend([0x1b, 1, 0x88, 1, b'a', 1, b'b']); // field 7: a map of a text to a text
        bytes.extend([0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0x11]); // a double, and a true
        bytes.push(0);
        let read = PageHeader::read(&bytes).unwrap();
        assert_eq!((read.length, read.size, read.values), (bytes.len(), 4, 1));
        assert_eq!(read.encodings, [0, 3, 3]);
        for end in 0..bytes.len() {
            assert_eq!(PageHeader::read(&bytes[..end]), None, "cut at {end}");
        }
    }
}
