//! Readers: a cache in memory, and a cache whose files are mapped.

pub(crate) mod batch;
pub(crate) mod buffer;
pub(crate) mod cache;
pub(crate) mod contents;
pub(crate) mod in_memory;
pub(crate) mod mapped;

pub(crate) mod neighbours;
pub(crate) mod state_index;
