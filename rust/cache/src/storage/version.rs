//! Versions of files, and what a file is written in the place of.

use std::fs;
use std::io;
use std::path::Path;

use super::stamp::Stamp;
use crate::format::error::{CacheError, CacheResult};

/// A state of a file that a later state differs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    /// A small file of this machine, by its bytes.
    Bytes(blake3::Hash),
    /// Any file of this machine, as the file system describes it.
    File(Stamp),
    /// An object.
    Object(Tag),
}

/// What tells two contents of an object apart.
#[derive(Debug, Clone)]
pub(crate) struct Tag {
    pub(super) e_tag: Option<String>,
    pub(super) version: Option<String>,
}

impl PartialEq for Tag {
    /// A store may leave the version out of some of its answers, so it counts only where there is no
    /// other sign.
    fn eq(&self, other: &Self) -> bool {
        match (&self.e_tag, &other.e_tag) {
            (Some(this), Some(other)) => this == other,
            _ => self.version.is_some() && self.version == other.version,
        }
    }
}

impl Eq for Tag {}

/// What may be in the place of a file that is written; anything else is a [`CacheError::Conflict`].
///
/// An object store makes a condition of it. On this machine it is looked at just before the file is
/// put in its place: the lock is what keeps others away, and this finds those that did not take it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Replaces<'a> {
    /// Anything, or nothing.
    Anything,
    /// Nothing.
    Nothing,
    /// What had this version.
    Version(&'a Version),
}

impl<'a> Replaces<'a> {
    /// What had this version, or nothing where there was no file.
    pub(crate) fn former(version: Option<&'a Version>) -> Self {
        version.map_or(Self::Nothing, Self::Version)
    }

    /// Refuses what is at a path of this machine now, if it may not be replaced.
    pub(super) fn require(self, target: &Path, local: &Path) -> CacheResult<()> {
        let wrong = |error| CacheError::io(target, "read", error);
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let allowed = match self {
            Self::Anything | Self::Version(Version::Object(_)) => true,
            Self::Nothing => match fs::symlink_metadata(local) {
                Ok(_) => false,
                Err(error) if missing(&error) => true,
                Err(error) => return Err(wrong(error)),
            },
            Self::Version(Version::Bytes(former)) => match fs::read(local) {
                Ok(bytes) => blake3::hash(&bytes) == *former,
                Err(error) if missing(&error) => false,
                Err(error) => return Err(wrong(error)),
            },
            Self::Version(Version::File(former)) => match fs::metadata(local) {
                Ok(metadata) => Stamp::of(&metadata) == *former,
                // Somebody removed it; whole files are written, so nothing is lost.
                Err(error) if missing(&error) => true,
                Err(error) => return Err(wrong(error)),
            },
        };
        if allowed { Ok(()) } else { Err(CacheError::Conflict { path: target.to_owned() }) }
    }
}
