//! What can be done with a file or folder, wherever it is.

use std::fmt;
use std::path::{Path, PathBuf};

use super::input::Input;
use super::sink::{Sink, Written};
use super::version::{Replaces, Version};
use crate::format::error::CacheResult;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To nothing.
    Missing,
    /// To a file, or an object.
    File,
    /// To a folder; in an object store, to the beginning of objects' names.
    Folder,
}

/// How much is written at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// As much as one request takes.
    Small,
    /// Any size: an object is sent in pieces, and is not there before all of it is.
    Large,
}

/// Writes a file's bytes, and gives the sink back.
pub(crate) type Write<'a> = Box<dyn FnOnce(Sink) -> CacheResult<Sink> + 'a>;

/// A file or folder of a store: this machine's disks, or an object store.
pub(crate) trait Store: fmt::Debug {
    /// The path on this machine; `None` in an object store.
    fn local(&self) -> Option<&Path>;

    /// What is there.
    fn kind(&self) -> CacheResult<Kind>;

    /// Whether a file is there.
    fn is_file(&self) -> CacheResult<bool>;

    /// The version of the file; `None` where there is none.
    fn version(&self) -> CacheResult<Option<Version>>;

    /// All bytes of a small file, and its version; `None` where there is none.
    fn read(&self) -> CacheResult<Option<(Vec<u8>, Version)>>;

    /// The files right below a folder, in any order.
    fn list(&self) -> CacheResult<Vec<PathBuf>>;

    /// Removes a file.
    fn remove(&self) -> CacheResult<()>;

    /// Opens a file: the same content from then on, whatever takes its place.
    fn open(&self) -> CacheResult<Input>;

    /// Writes a small file in one step; returns its version.
    fn replace(&self, bytes: &[u8], replaces: Replaces<'_>) -> CacheResult<Version>;

    /// Writes a file that is there whole or not at all, even after a crash. On this machine that is by
    /// way of a temporary file in the folder `temporary_in`. What is left of it on an error is removed.
    fn write(
        &self,
        temporary_in: &Path,
        size: Size,
        replaces: Replaces<'_>,
        write: Write<'_>,
    ) -> CacheResult<Written>;

    /// Removes what a killed process was in the middle of writing in this folder.
    fn remove_temporary(&self) -> CacheResult<()>;

    /// The path without slashes at the end, to be the path of an output.
    fn output_path(&self) -> CacheResult<PathBuf>;
}
