//! Where the files of a cache are: on this machine, or in an object store.
//!
//! A path is a path, or a URL: `s3://bucket/key`, `gs://bucket/key`, `file:///path`. Everything here
//! takes either, so that nothing above need know which it is.

pub(crate) mod at_once;
mod descriptors;
mod failure;
pub(crate) mod input;
mod kept;
mod local;
pub(crate) mod lock;
pub(crate) mod mapping;
#[cfg(feature = "object-store")]
mod objects;
pub(crate) mod open_file;
mod place;
mod sink;
pub(crate) mod stamp;
mod store;
mod version;

use std::path::{Path, PathBuf};

pub(crate) use local::{TEMPORARY, begin, link, put_in_place, sync_folder_of};
#[cfg(feature = "object-store")]
pub use objects::clients::use_store;
#[cfg(feature = "test-util")]
pub use objects::faulty;
pub(crate) use place::{resolve_output, store_at};
pub(crate) use sink::{Sink, Written};
pub use store::Kind;
pub(crate) use store::Size;
pub(crate) use version::{Replaces, Version};

use crate::format::error::{CacheError, CacheResult};

/// What a path leads to.
///
/// # Errors
/// [`CacheError::Argument`] for a URL that cannot be used; [`CacheError::Io`].
pub fn kind(path: &Path) -> CacheResult<Kind> {
    store_at(path)?.kind()
}

/// Whether a writer of this path makes one part of a folder rather than a whole file.
///
/// Object stores have no folders that are there before something is in them, so there the name tells.
pub(crate) fn is_folder_output(path: &Path) -> CacheResult<bool> {
    match kind(path)? {
        Kind::Folder => Ok(true),
        Kind::File => Ok(false),
        Kind::Missing => Ok(is_remote(path)? && path.extension().is_none_or(|e| e != "parquet")),
    }
}

/// Whether a path is in an object store.
///
/// # Errors
/// [`CacheError::Argument`] for a URL that cannot be used.
pub fn is_remote(path: &Path) -> CacheResult<bool> {
    Ok(store_at(path)?.local().is_none())
}

/// The files of a folder whose names have this extension, by name.
///
/// # Errors
/// [`CacheError::Io`], and for a folder of this machine that is not there [`CacheError::NotFound`].
pub fn list(folder: &Path, ending: &str) -> CacheResult<Vec<PathBuf>> {
    let mut files = store_at(folder)?.list()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == ending));
    files.sort_unstable();
    Ok(files)
}

/// Opens a file to be read, as Parquet for example.
///
/// # Errors
/// [`CacheError::NotFound`], [`CacheError::Io`].
#[cfg(feature = "parquet")]
pub fn open(path: &Path) -> CacheResult<impl parquet::file::reader::ChunkReader + Clone + 'static> {
    store_at(path)?.open()
}

/// The bytes of a file; `None` where there is none.
///
/// # Errors
/// [`CacheError::Io`].
pub fn read_file(path: &Path) -> CacheResult<Option<Vec<u8>>> {
    Ok(store_at(path)?.read()?.map(|(bytes, _)| bytes))
}

/// Writes a file that is there whole or not at all, even after a crash.
///
/// # Errors
/// [`CacheError::Io`]; the former file then still stands.
pub fn write_file(path: &Path, bytes: &[u8]) -> CacheResult<()> {
    store_at(path)?.replace(bytes, Replaces::Anything).map(|_| ())
}

/// Removes a file if there is one.
///
/// # Errors
/// [`CacheError::Io`].
pub fn remove_file(path: &Path) -> CacheResult<()> {
    match store_at(path)?.remove() {
        Err(CacheError::NotFound { .. }) => Ok(()),
        removed => removed,
    }
}
