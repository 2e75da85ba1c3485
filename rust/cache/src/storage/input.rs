//! The bytes of one file, read by many threads, each at its own place.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use super::open_file::OpenFile;

/// Other software may make row groups of many gigabytes; those are read block by block.
const LONGEST_PIECE: u64 = 256 << 20;
/// Bytes of an object that are asked for at a time where nobody said how many will be read.
const BLOCK: usize = 1 << 20;

/// A file of a store that was opened: the same content from opening to end.
pub(crate) trait Remote: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Some of its bytes; an error if it was replaced after it was opened.
    fn read(&self, range: Range<u64>) -> io::Result<Bytes>;

    /// What kept the last read of this thread from being answered, if anything did.
    fn failure(&self) -> Option<io::Error>;
}

/// One file from opening to end, whatever its path comes to name: a writer may put another in its
/// place, and half of each would be neither.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// An open file.
    File(Arc<OpenFile>),
    /// A file in memory, its own or mapped.
    Bytes(Bytes),
    /// An object of a store.
    Object(Arc<dyn Remote>),
    /// Some bytes of an object, where they begin, and the object's length.
    Piece(Bytes, u64, u64),
}

impl Input {
    /// A file of this machine that was opened.
    pub(crate) fn local(path: &Path, file: File, length: u64) -> io::Result<Self> {
        Ok(Self::File(Arc::new(OpenFile::at(path, file, length)?)))
    }

    /// A file of a store that was opened.
    #[cfg(feature = "object-store")]
    pub(crate) fn remote(file: impl Remote + 'static) -> Self {
        Self::Object(Arc::new(file))
    }

    /// The first `length` bytes of an open file.
    pub(crate) fn file(file: Arc<File>, length: u64) -> Self {
        Self::File(Arc::new(OpenFile::new(file, length)))
    }

    /// The same with these bytes loaded: of an object they are fetched in one request.
    pub(crate) fn ahead(&self, range: Range<u64>) -> Result<Self> {
        match self {
            Self::Object(object)
                if range.start < range.end
                    && range.end <= object.len()
                    && range.end - range.start <= LONGEST_PIECE =>
            {
                let start = range.start;
                Ok(Self::Piece(object.read(range)?, start, object.len()))
            }
            other => Ok(other.clone()),
        }
    }

    /// What kept a disk or a store from giving some of its bytes, if anything did.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        match self {
            Self::File(file) => file.failure(),
            Self::Object(object) => object.failure(),
            Self::Bytes(_) | Self::Piece(..) => None,
        }
    }

    /// Whether it is in an object store.
    pub(crate) fn is_object(&self) -> bool {
        matches!(self, Self::Object(_) | Self::Piece(..))
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.len(),
            Self::Piece(_, _, length) => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Object(object) => object.len(),
        }
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let rest = |input: &Self| ReadAt { input: input.clone(), at: start };
        Ok(match self {
            Self::File(..) => Box::new(BufReader::new(rest(self))),
            Self::Bytes(bytes) => Box::new(bytes.get_read(start)?),
            Self::Object(_) => Box::new(BufReader::with_capacity(BLOCK, rest(self))),
            Self::Piece(..) => Box::new(rest(self)),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // A damaged footer may ask for any length: what is not there needs no memory.
        let missing = || {
            let message = format!("{length} bytes at {start} of a file of {}", self.len());
            ParquetError::EOF(message)
        };
        let end = start.checked_add(length as u64).filter(|end| *end <= self.len());
        let end = end.ok_or_else(missing)?;
        match self {
            Self::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)?;
                Ok(bytes.into())
            }
            Self::Bytes(bytes) => bytes.get_bytes(start, length),
            Self::Object(object) => Ok(object.read(start..end)?),
            Self::Piece(bytes, first, _) => {
                let inside = |at: u64| usize::try_from(at.checked_sub(*first)?).ok();
                let range = inside(start).zip(inside(end)).map(|(start, end)| start..end);
                let range = range.filter(|range| range.end <= bytes.len());
                Ok(bytes.slice(range.ok_or_else(missing)?))
            }
        }
    }
}

/// Reads on from a place; clones of a file would share one position.
#[derive(Debug)]
struct ReadAt {
    input: Input,
    at: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &self.input {
            Input::File(file) => file.read_at(buffer, self.at)?,
            other => {
                let end = match other {
                    Input::Piece(bytes, first, _) => first + bytes.len() as u64,
                    other => other.len(),
                };
                let left = usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX);
                let count = left.min(buffer.len());
                buffer[..count].copy_from_slice(&other.get_bytes(self.at, count)?);
                count
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use parquet::file::reader::{ChunkReader, Length};
    use tempfile::TempDir;

    use crate::storage::store_at;

    #[test]
    fn a_file_that_is_replaced_or_removed_is_read_to_its_end() {
        let folder = TempDir::new().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "former").unwrap();
        fs::write(&other, "another").unwrap();
        let input = store_at(&path).unwrap().open().unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!((input.len(), &input.get_bytes(0, 6).unwrap()[..]), (6, &b"former"[..]));
        fs::remove_file(&path).unwrap();
        let mut rest = String::new();
        input.get_read(2).unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rmer");
        input.get_bytes(1, 6).unwrap_err();
        input.get_bytes(u64::MAX, 1).unwrap_err();
    }
}
