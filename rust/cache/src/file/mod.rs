//! One Parquet file of states and rows, whoever wrote it: reading and writing.

pub(crate) mod decode;
pub(crate) mod external;
#[cfg(feature = "writer")]
pub(crate) mod external_writer;
pub(crate) mod failures;
pub(crate) mod pages;
pub(crate) mod reader;
pub(crate) mod rows;
pub(crate) mod sound;
#[cfg(feature = "writer")]
pub(crate) mod writer;
