//! The header before a data page, as far as it is read and written by address.
//!
//! Format: Apache Parquet, `parquet.thrift`, `PageHeader` in Thrift's compact protocol.

use std::io::Cursor;

use parquet::basic::{Encoding, PageType};
use parquet::errors::{ParquetError, Result};
use thrift::protocol::{
    TCompactInputProtocol, TCompactOutputProtocol, TFieldIdentifier, TInputProtocol,
    TOutputProtocol, TStructIdentifier, TType,
};

/// A data page of version 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageHeader {
    /// Bytes of the header itself.
    pub(super) length: usize,
    /// Bytes of the page after it.
    pub(super) size: usize,
    /// CRC-32 of those bytes.
    pub(super) checksum: Option<u32>,
    /// Values in the page.
    pub(super) values: u32,
    /// Codes of the encodings of values, definition levels and repetition levels.
    pub(super) encodings: [i32; 3],
}

impl PageHeader {
    /// Reads the header at the start of some bytes; `None` for anything but a data page of version 1.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let mut input = TCompactInputProtocol::new(&mut cursor);
        let (mut kind, mut sizes, mut checksum, mut page) = (None, [None; 2], None, None);
        input.read_struct_begin().ok()?;
        while let Field::Of(id, field) = next_field(&mut input)? {
            match (id, field) {
                (1, TType::I32) => kind = Some(input.read_i32().ok()?),
                (2 | 3, TType::I32) => sizes[usize::from(id == 3)] = Some(input.read_i32().ok()?),
                (4, TType::I32) => checksum = Some(input.read_i32().ok()?.cast_unsigned()),
                (5, TType::Struct) => page = Some(data_page(&mut input)?),
                (_, other) => input.skip(other).ok()?,
            }
            input.read_field_end().ok()?;
        }
        input.read_struct_end().ok()?;
        let [values, encodings @ ..] = page?;
        let (Some(0), [Some(uncompressed), Some(size)]) = (kind, sizes) else { return None };
        let size = usize::try_from(size).ok().filter(|_| size == uncompressed)?;
        let length = usize::try_from(cursor.position()).ok()?;
        Some(Self { length, size, checksum, values: u32::try_from(values).ok()?, encodings })
    }
}

/// The four numbers of a `DataPageHeader`.
fn data_page(input: &mut impl TInputProtocol) -> Option<[i32; 4]> {
    let mut numbers = [None; 4];
    input.read_struct_begin().ok()?;
    while let Field::Of(id, field) = next_field(input)? {
        match (usize::from(id).checked_sub(1).and_then(|i| numbers.get_mut(i)), field) {
            (Some(number), TType::I32) => *number = Some(input.read_i32().ok()?),
            (_, other) => input.skip(other).ok()?,
        }
        input.read_field_end().ok()?;
    }
    input.read_struct_end().ok()?;
    let [Some(a), Some(b), Some(c), Some(d)] = numbers else { return None };
    Some([a, b, c, d])
}

/// What comes next in a struct.
enum Field {
    /// A field, by its number and type.
    Of(u16, TType),
    End,
}

fn next_field(input: &mut impl TInputProtocol) -> Option<Field> {
    let field = input.read_field_begin().ok()?;
    if field.field_type == TType::Stop {
        return Some(Field::End);
    }
    Some(Field::Of(u16::try_from(field.id?).ok()?, field.field_type))
}

/// A data page of version 1 that is written.
pub(super) struct NewPage {
    /// Bytes before and after compression.
    pub(super) sizes: [i32; 2],
    /// CRC-32 of the bytes as they are written.
    pub(super) checksum: u32,
    /// Values in the page.
    pub(super) values: i32,
    /// Those of values, definition levels and repetition levels.
    pub(super) encodings: [Encoding; 3],
}

impl NewPage {
    /// Writes the page's header.
    pub(super) fn write_header(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut header = Header(TCompactOutputProtocol::new(out));
        header.begin("PageHeader")?;
        header.number(1, PageType::DATA_PAGE as i32)?;
        header.number(2, self.sizes[0])?;
        header.number(3, self.sizes[1])?;
        header.number(4, self.checksum.cast_signed())?;
        header.field(5, TType::Struct)?;
        header.begin("DataPageHeader")?;
        header.number(1, self.values)?;
        for (id, encoding) in (2..).zip(self.encodings) {
            header.number(id, encoding as i32)?;
        }
        header.end()?;
        header.end()
    }
}

/// Structs of numbers in Thrift's compact protocol.
struct Header<'a>(TCompactOutputProtocol<&'a mut Vec<u8>>);

impl Header<'_> {
    fn begin(&mut self, name: &str) -> Result<()> {
        self.0.write_struct_begin(&TStructIdentifier::new(name)).map_err(thrift_error)
    }

    fn field(&mut self, id: i16, kind: TType) -> Result<()> {
        self.0.write_field_begin(&TFieldIdentifier::new("", kind, id)).map_err(thrift_error)
    }

    fn number(&mut self, id: i16, value: i32) -> Result<()> {
        self.field(id, TType::I32)?;
        self.0.write_i32(value).map_err(thrift_error)?;
        self.0.write_field_end().map_err(thrift_error)
    }

    fn end(&mut self) -> Result<()> {
        self.0.write_field_stop().map_err(thrift_error)?;
        self.0.write_struct_end().map_err(thrift_error)
    }
}

fn thrift_error(error: thrift::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}
