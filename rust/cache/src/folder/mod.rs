//! The files that a cache consists of: one, or the parts of a folder.

pub(crate) mod describe;
pub(crate) mod manifest;
pub(crate) mod parts;
