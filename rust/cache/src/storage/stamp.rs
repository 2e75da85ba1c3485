//! What tells one content of a file of this machine from another, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// The file system's number of a file, its length, and when it was last written.
///
/// The time of the last change of its metadata is not part of it: a second name changes that, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// Whether both are of one file, however it changed.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}
