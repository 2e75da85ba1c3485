//! The embedding cache: its schema, the identity of its encoder, its readers, writer and checks.

mod audit;
mod buffer;
mod checked_pages;
mod compact;
mod describe;
mod direct_pages;
mod embedding_cache;
mod error;
mod file_writer;
mod footer;
mod identity;
mod input;
mod levels;
mod lock;
mod manifest;
mod mapped_cache;
mod mapping;
mod neighbours;
mod norms;
mod open_file;
mod outside_rows;
mod page_header;
mod parts;
mod plain_chunk;
mod plain_pages;
mod row_check;
mod row_file;
mod schema;
mod sketch;
mod state_index;
pub mod storage;
mod work_folder;
mod writer;

pub use audit::{AuditReport, BadRowExample, NormSummary, audit};
pub use compact::compact;
pub use describe::{FileDescription, describe};
pub use embedding_cache::{Checks, Checksums, EmbeddingCache, OpenOptions};
pub use error::{CacheError, CacheResult};
pub use footer::{Footer, StateKey};
pub use identity::{FieldDifference, Identity, differences};
pub use manifest::{MANIFEST, Manifest, Part};
pub use mapped_cache::{MappedCache, OpenMode};
pub use neighbours::Neighbour;
pub use row_check::{BadRow, Outlier, RowChecker, check_rows};
pub use row_file::RowFile;
pub(crate) use row_file::guard;
pub use schema::{
    EMBEDDING_COLUMN, FORMAT_VERSION, METADATA_KEY, ROW_GROUP_ROWS, STATE_COLUMN, cache_schema,
};
pub use writer::{CacheWriter, FinishReport, OutputLock, Verdict, WriterOptions};
