//! Pages of Parquet files, read and written without a decoder where rows stand as in memory.

#[cfg(feature = "writer")]
pub(crate) mod checked;
pub(crate) mod compact;
pub(crate) mod direct;
pub(crate) mod header;
pub(crate) mod levels;
pub(crate) mod plain;
#[cfg(feature = "writer")]
pub(crate) mod plain_chunk;
