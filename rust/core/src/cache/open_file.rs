//! A file of this machine, of a fixed length, read by many threads at places of their own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// An open file, whatever its path comes to name and however it grows.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: Arc<File>,
    length: u64,
    /// The system's number of what last kept the file from being read, or 0. The Parquet reader makes
    /// texts of errors, which tell a failing disk from a damaged file no longer.
    failure: AtomicI32,
}

impl OpenFile {
    /// The first `length` bytes of a file.
    pub(super) fn new(file: Arc<File>, length: u64) -> Self {
        Self { file, length, failure: AtomicI32::new(0) }
    }

    /// The number of its bytes.
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Reads some bytes, at most as many as fit.
    pub(super) fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.noted(self.file.read_at(bytes, at))
    }

    /// Fills `bytes`.
    pub(super) fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.noted(self.file.read_exact_at(bytes, at))
    }

    /// What the system said when it could not read the file, if that was so.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let number = self.failure.load(Ordering::Relaxed);
        (number != 0).then(|| io::Error::from_raw_os_error(number))
    }

    fn noted<T>(&self, read: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &read
            && let Some(number) = error.raw_os_error()
        {
            self.failure.store(number, Ordering::Relaxed);
        }
        read
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
    }
}
