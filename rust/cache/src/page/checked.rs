//! Pages of text with checksums. The Parquet library checks those that it finds but writes none itself.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::errors::{ParquetError, Result};

use crate::page::header::NewPage;

/// The bytes of one column chunk, filled by the column writer that holds a clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunk(Arc<Mutex<Vec<u8>>>);

impl Chunk {
    /// The bytes so far; the chunk is empty after it.
    pub(crate) fn take(&self) -> Bytes {
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

/// Writes the header of a data page of version 1, with the CRC-32 of its bytes.
fn write_header(page: &CompressedPage, out: &mut Vec<u8>) -> Result<()> {
    let Page::DataPage { def_level_encoding, rep_level_encoding, .. } = page.compressed_page()
    else {
        return Err(ParquetError::General("only data pages of version 1 are written".to_owned()));
    };
    let number = |size: usize| {
        i32::try_from(size).map_err(|_| ParquetError::General(format!("a page of {size} bytes")))
    };
    let page = NewPage {
        sizes: [number(page.uncompressed_size())?, number(page.compressed_size())?],
        checksum: crc32fast::hash(page.data()),
        values: number(page.num_values() as usize)?,
        encodings: [page.encoding(), *def_level_encoding, *rep_level_encoding],
    };
    page.write_header(out);
    Ok(())
}
