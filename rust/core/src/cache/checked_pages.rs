//! Pages with checksums. The Parquet library checks those that it finds but writes none itself.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::{Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::errors::{ParquetError, Result};
use thrift::protocol::{
    TCompactOutputProtocol, TFieldIdentifier, TOutputProtocol, TStructIdentifier, TType,
};

/// The bytes of one column chunk, filled by the column writer that holds a clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk(Arc<Mutex<Vec<u8>>>);

impl Chunk {
    /// The bytes so far; the chunk is empty after it.
    pub(super) fn take(&self) -> Bytes {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *bytes).into()
    }
}

impl PageWriter for Chunk {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = bytes.len();
        write_header(&page, &mut bytes)?;
        let header = bytes.len() - start;
        bytes.extend_from_slice(page.data());
        let mut spec = PageWriteSpec::new();
        spec.page_type = page.page_type();
        spec.uncompressed_size = page.uncompressed_size() + header;
        spec.compressed_size = page.compressed_size() + header;
        spec.offset = start as u64;
        spec.bytes_written = (bytes.len() - start) as u64;
        spec.num_values = page.num_values();
        Ok(spec)
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Writes the `PageHeader` of a data page of version 1, with the CRC-32 of its bytes.
///
/// Format: Apache Parquet, `parquet.thrift` and "Checksumming".
fn write_header(page: &CompressedPage, out: &mut Vec<u8>) -> Result<()> {
    let Page::DataPage { def_level_encoding, rep_level_encoding, .. } = page.compressed_page()
    else {
        return Err(ParquetError::General("only data pages of version 1 are written".to_owned()));
    };
    let (values, encoding) = (page.num_values(), page.encoding());
    let mut header = Header(TCompactOutputProtocol::new(out));
    header.begin("PageHeader")?;
    header.number(1, PageType::DATA_PAGE as i32)?;
    header.number(2, size(page.uncompressed_size())?)?;
    header.number(3, size(page.compressed_size())?)?;
    header.number(4, crc32fast::hash(page.data()).cast_signed())?;
    header.field(5, TType::Struct)?;
    header.begin("DataPageHeader")?;
    header.number(1, size(values as usize)?)?;
    header.number(2, code(encoding))?;
    header.number(3, code(*def_level_encoding))?;
    header.number(4, code(*rep_level_encoding))?;
    header.end()?;
    header.end()
}

fn size(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| ParquetError::General(format!("a page of {size} bytes")))
}

fn code(encoding: Encoding) -> i32 {
    encoding as i32
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
