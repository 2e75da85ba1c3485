//! A file of this machine, of a fixed length, read by many threads, each at its own place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{self, Path};
use std::sync::Arc;

use crate::storage::descriptors::Reopened;
use crate::storage::failure::LastRead;

/// An open file, whatever its path comes to name and however it grows.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: Handle,
    length: u64,
    last_read: LastRead,
}

#[derive(Debug)]
enum Handle {
    /// A file that stays open: one that still grows, or that has no path any more.
    Kept(Arc<File>),
    Reopened(Reopened),
}

impl OpenFile {
    /// The first `length` bytes of a file, which stays open.
    pub(crate) fn new(file: Arc<File>, length: u64) -> Self {
        Self { file: Handle::Kept(file), length, last_read: LastRead::default() }
    }

    /// The first `length` bytes of a file that was opened at this path.
    pub(crate) fn at(path: &Path, file: File, length: u64) -> io::Result<Self> {
        // The process may change its working folder before the file is opened again.
        let file = Handle::Reopened(Reopened::new(path::absolute(path)?, file)?);
        Ok(Self { file, length, last_read: LastRead::default() })
    }

    /// The number of its bytes.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// The file itself.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        match &self.file {
            Handle::Kept(file) => Ok(Arc::clone(file)),
            Handle::Reopened(file) => file.file(),
        }
    }

    /// Reads some bytes, at most as many as fit.
    pub(crate) fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.noted(self.file().map(|file| file.read_at(bytes, at)))
    }

    /// Fills `bytes`.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.noted(self.file().map(|file| file.read_exact_at(bytes, at)))
    }

    /// Why the last read of this thread was not answered, if it was not.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.last_read.failure()
    }

    /// Notes whether the system answered; to reach the end of a short file is an answer.
    fn noted<T>(&self, read: io::Result<io::Result<T>>) -> io::Result<T> {
        let copy = |error: &io::Error| match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::other(error.to_string()),
        };
        match &read {
            Err(error) => self.last_read.failed(copy(error)),
            Ok(Err(error)) if error.raw_os_error().is_some() => self.last_read.failed(copy(error)),
            Ok(_) => self.last_read.succeeded(),
        }
        read?
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::OpenFile;

    #[test]
    fn what_the_system_refuses_is_told_from_what_is_not_there() {
        let mut short = tempfile::tempfile().unwrap();
        short.write_all(b"ab").unwrap();
        let short = OpenFile::new(short.into(), 3);
        short.read_exact_at(&mut [0; 2], 0).unwrap();
        short.read_exact_at(&mut [0; 3], 0).unwrap_err();
        assert!(short.failure().is_none());
        // A folder can be opened, but the system gives none of its bytes.
        let folder = File::open("/").unwrap();
        (&folder).read_exact(&mut [0]).unwrap_err();
        let folder = OpenFile::new(folder.into(), 3);
        folder.read_exact_at(&mut [0; 3], 0).unwrap_err();
        assert!(folder.failure().is_some());
        assert!(folder.failure().is_none(), "it is told once");
        folder.read_exact_at(&mut [0; 3], 0).unwrap_err();
        short.read_exact_at(&mut [0; 2], 0).unwrap();
        assert!(folder.failure().is_some(), "what another file answers changes nothing");
    }
}
