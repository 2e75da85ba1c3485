//! The bytes of one file, read by many threads at places of their own.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

use super::error::{CacheError, CacheResult};

/// One file from opening to end, whatever its path comes to name: a writer may put another in its
/// place, and half of each would be neither.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// An open file and its length.
    File(Arc<File>, u64),
    /// A file in memory, its own or mapped.
    Bytes(Bytes),
}

impl Input {
    /// Opens a file on disk.
    pub(super) fn open(path: &Path) -> CacheResult<Self> {
        let file = File::open(path).map_err(|error| CacheError::io(path, "open", error))?;
        let metadata = file.metadata().map_err(|error| CacheError::io(path, "stat", error))?;
        if metadata.is_dir() {
            return Err(CacheError::format(path, "is a folder, expected a Parquet file"));
        }
        Ok(Self::File(Arc::new(file), metadata.len()))
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(match self {
            Self::File(file, _) => {
                Box::new(BufReader::new(ReadAt { file: Arc::clone(file), at: start }))
            }
            Self::Bytes(bytes) => Box::new(bytes.get_read(start)?),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // A damaged footer may ask for any length: what is not there needs no memory.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            let message = format!("{length} bytes at {start} of a file of {}", self.len());
            return Err(ParquetError::EOF(message));
        }
        match self {
            Self::File(file, _) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)?;
                Ok(bytes.into())
            }
            Self::Bytes(bytes) => bytes.get_bytes(start, length),
        }
    }
}

/// Reads on from a place; clones of a file would share one position.
#[derive(Debug)]
struct ReadAt {
    file: Arc<File>,
    at: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
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

    use super::Input;

    #[test]
    fn a_file_that_is_replaced_or_removed_is_read_to_its_end() {
        let folder = TempDir::new().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "former").unwrap();
        fs::write(&other, "another").unwrap();
        let input = Input::open(&path).unwrap();
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
