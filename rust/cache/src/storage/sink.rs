//! What a file is written into: a file, an upload, or memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::format::error::{CacheError, CacheResult};

/// A file of a store that is being written.
pub(crate) trait RemoteWrite: fmt::Debug + Send {
    /// Takes some of these bytes; returns how many.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Sends the rest; only then is the file there.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] where something else is there than may be replaced.
    fn finish(self: Box<Self>) -> CacheResult<()>;
}

/// The bytes of one file on their way.
#[derive(Debug)]
pub(crate) struct Sink {
    /// What the file will be called.
    path: PathBuf,
    to: To,
    bytes: u64,
    hasher: Option<blake3::Hasher>,
}

#[derive(Debug)]
enum To {
    File(File),
    Remote(Box<dyn RemoteWrite>),
    Memory(Vec<u8>),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// The number of bytes.
    pub(crate) bytes: u64,
    /// Their BLAKE3 digest, if it was asked for.
    pub(crate) digest: Option<blake3::Hash>,
}

impl Sink {
    pub(super) fn file(path: &Path, file: File) -> Self {
        Self::to(path, To::File(file))
    }

    #[cfg(feature = "object-store")]
    pub(super) fn remote(path: &Path, remote: Box<dyn RemoteWrite>) -> Self {
        Self::to(path, To::Remote(remote))
    }

    #[cfg(feature = "object-store")]
    pub(super) fn in_memory(path: &Path) -> Self {
        Self::to(path, To::Memory(Vec::new()))
    }

    fn to(path: &Path, to: To) -> Self {
        Self { path: path.to_owned(), to, bytes: 0, hasher: None }
    }

    /// Makes a digest of what is written from here on.
    pub(crate) fn hashing(mut self) -> Self {
        self.hasher = Some(blake3::Hasher::new());
        self
    }

    /// What the file will be called.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until what was written into a file so far is on the disk.
    pub(crate) fn sync(&self) -> CacheResult<()> {
        let To::File(file) = &self.to else { return Ok(()) };
        file.sync_data().map_err(|error| CacheError::io(&self.path, "write", error))
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until everything is where it belongs.
    pub(super) fn finish(self) -> CacheResult<Written> {
        let written = self.written();
        match self.to {
            To::File(file) => {
                file.sync_all().map_err(|error| CacheError::io(&self.path, "write", error))?;
            }
            To::Remote(remote) => remote.finish()?,
            To::Memory(_) => {}
        }
        Ok(written)
    }

    /// Hands what is in memory over.
    #[cfg(feature = "object-store")]
    pub(super) fn put<T>(
        self,
        put: impl FnOnce(Vec<u8>) -> CacheResult<T>,
    ) -> CacheResult<(Written, T)> {
        let written = self.written();
        let bytes = if let To::Memory(bytes) = self.to { bytes } else { Vec::new() };
        Ok((written, put(bytes)?))
    }

    /// Digest of what was written so far, if it was asked for.
    pub(crate) fn digest(&self) -> Option<blake3::Hash> {
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
            To::Remote(remote) => remote.write(bytes)?,
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
            To::Remote(_) | To::Memory(_) => Ok(()),
        }
    }
}
