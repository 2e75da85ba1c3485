//! What a file is written into: a file, an upload, or memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::upload::Upload;
use crate::cache::error::{CacheError, CacheResult};

/// The bytes of one file on their way.
#[derive(Debug)]
pub(in crate::cache) struct Sink {
    /// What the file will be called.
    path: PathBuf,
    to: To,
    bytes: u64,
    hasher: Option<blake3::Hasher>,
}

#[derive(Debug)]
enum To {
    File(File),
    Upload(Box<Upload>),
    Memory(Vec<u8>),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cache) struct Written {
    /// The number of bytes.
    pub(in crate::cache) bytes: u64,
    /// Their BLAKE3 digest, if it was asked for.
    pub(in crate::cache) digest: Option<blake3::Hash>,
}

impl Sink {
    pub(super) fn file(path: &Path, file: File) -> Self {
        Self::to(path, To::File(file))
    }

    pub(super) fn upload(upload: Upload) -> Self {
        let path = upload.path().to_owned();
        Self::to(&path, To::Upload(Box::new(upload)))
    }

    pub(super) fn in_memory(path: &Path) -> Self {
        Self::to(path, To::Memory(Vec::new()))
    }

    fn to(path: &Path, to: To) -> Self {
        Self { path: path.to_owned(), to, bytes: 0, hasher: None }
    }

    /// Makes a digest of what is written from here on.
    pub(in crate::cache) fn hashing(mut self) -> Self {
        self.hasher = Some(blake3::Hasher::new());
        self
    }

    /// What the file will be called.
    pub(in crate::cache) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until what was written into a file so far is on the disk.
    pub(in crate::cache) fn sync(&self) -> CacheResult<()> {
        let To::File(file) = &self.to else { return Ok(()) };
        file.sync_data().map_err(|error| CacheError::io(&self.path, "write", error))
    }

    /// Bytes written so far.
    pub(in crate::cache) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until everything is where it belongs.
    pub(super) fn finish(self) -> CacheResult<Written> {
        let written = self.written();
        match self.to {
            To::File(file) => {
                file.sync_all().map_err(|error| CacheError::io(&self.path, "write", error))?;
            }
            To::Upload(upload) => upload.finish()?,
            To::Memory(_) => {}
        }
        Ok(written)
    }

    /// Hands what is in memory over.
    pub(super) fn put<T>(
        self,
        put: impl FnOnce(Vec<u8>) -> CacheResult<T>,
    ) -> CacheResult<(Written, T)> {
        let written = self.written();
        let bytes = if let To::Memory(bytes) = self.to { bytes } else { Vec::new() };
        Ok((written, put(bytes)?))
    }

    /// Digest of what was written so far, if it was asked for.
    pub(in crate::cache) fn digest(&self) -> Option<blake3::Hash> {
        self.hasher.as_ref().map(blake3::Hasher::finalize)
    }

    fn written(&self) -> Written {
        Written { bytes: self.bytes, digest: self.digest() }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.to {
            To::File(file) => file.write(bytes)?,
            To::Upload(upload) => upload.write(bytes)?,
            To::Memory(memory) => memory.write(bytes)?,
        };
        self.bytes += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.to {
            To::File(file) => file.flush(),
            To::Upload(_) | To::Memory(_) => Ok(()),
        }
    }
}
