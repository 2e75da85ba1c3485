//! What the files of a cache say about themselves, without reading their rows.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::file::reader::RowFile;
use crate::folder::parts::open_files;
use crate::format::error::CacheResult;
use crate::format::footer::Footer;

/// One file of a cache, from its metadata only.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FileDescription {
    /// The file.
    #[serde(serialize_with = "as_shown")]
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Number of rows.
    pub rows: usize,
    /// Length of every embedding.
    pub dim: usize,
    /// Number of row groups.
    pub row_groups: usize,
    /// Name and type of each column.
    pub columns: Vec<(String, String)>,
    /// What it says about its encoder; `None` where other software wrote it.
    pub footer: Option<Footer>,
}

/// Describes a cache file, or each file of a folder.
///
/// # Errors
/// Any [`super::CacheError`] that keeps the metadata from being read.
pub fn describe(path: impl AsRef<Path>) -> CacheResult<Vec<FileDescription>> {
    Ok(open_files(path.as_ref())?.iter().map(describe_file).collect())
}

fn describe_file(file: &RowFile) -> FileDescription {
    let path = file.path().to_owned();
    FileDescription {
        bytes: file.bytes(),
        rows: file.num_rows(),
        dim: file.dim(),
        row_groups: file.group_rows().len(),
        columns: file.columns(),
        footer: file.footer().cloned(),
        path,
    }
}

/// Serializes a path as it is printed, since its bytes need not be text.
pub(crate) fn as_shown<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
