//! The one definition of the cache's columns and metadata keys.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};

/// Column 0: the state's text, UTF-8, not null, byte for byte as given.
pub const STATE_COLUMN: &str = "state_pp";
/// Column 1: the state's embedding, a list of float32 with 32-bit offsets, not null.
pub const EMBEDDING_COLUMN: &str = "embedding";
/// Footer key of the one JSON value that holds identity, provenance and counts ([`crate::Footer`]).
pub const METADATA_KEY: &str = "ebm_encode";
/// Version of that JSON value and of the layout. A reader refuses a newer one.
pub const FORMAT_VERSION: u32 = 1;
/// Which software wrote a file, as its footer says: this, a space and the version.
pub(crate) const CREATED_BY: &str = "ebm-encode";
/// How the names of Parquet files end.
pub(crate) const PARQUET: &str = "parquet";
/// Rows of a full row group: 16 MiB at dimension 4,096, so no 32-bit list offset can overflow.
pub const ROW_GROUP_ROWS: usize = 1024;

/// The Arrow schema of a cache file.
///
/// The list's child is named `element`, as the Parquet specification asks, so that the name is the
/// same in the file and in memory whichever library reads it.
#[must_use]
#[cfg_attr(not(feature = "arrow"), allow(unreachable_pub))]
pub fn cache_schema() -> SchemaRef {
    let element = Field::new("element", DataType::Float32, false);
    Arc::new(Schema::new(vec![
        Field::new(STATE_COLUMN, DataType::Utf8, false),
        Field::new(EMBEDDING_COLUMN, DataType::List(Arc::new(element)), false),
    ]))
}
