//! A file as memory. The only unsafe code of the cache.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::format::error::{CacheError, CacheResult};

/// Maps a file; the memory is the system's page cache, which all processes share.
///
/// Files of a cache are never written in place: a writer makes a new file and renames it. Cutting a
/// mapped file short by other means ends the process that reads it.
pub(crate) fn map(path: &Path, file: &File) -> CacheResult<Bytes> {
    let wrong = |error| CacheError::io(path, "map", error);
    if file.metadata().map_err(wrong)?.len() == 0 {
        return Ok(Bytes::new()); // there are no maps of nothing
    }
    // SAFETY: the bytes are only read, and every use of them is of plain bytes, whatever they are. That
    // nobody changes them is what this crate's writers keep to, by renaming.
    #[expect(unsafe_code, reason = "a map is unsafe because others might change the file")]
    let map = unsafe { Mmap::map(file) }.map_err(wrong)?;
    Ok(Bytes::from_owner(map))
}
