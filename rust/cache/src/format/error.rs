//! Everything that can go wrong with a cache, each with the file, row or field at fault.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::identity::FieldDifference;

/// The result of a cache operation.
pub type CacheResult<T> = Result<T, CacheError>;

/// A failure of reading, writing or checking a cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There is no such file, or a folder without Parquet files.
    #[error("{}: {detail}", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
        /// What was looked for there.
        detail: String,
    },
    /// The operating system or the store refused a read or a write.
    #[error("{}: cannot {action}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The system's error. It is part of the message, so it is not given again as a source.
        error: io::Error,
    },
    /// The file is not a cache: not Parquet, damaged, or with other columns.
    #[error("{}: {detail}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        detail: String,
    },
    /// One row is malformed (a null, a wrong width).
    #[error("{}: row {row}: {detail}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Row number in the file, from 0.
        row: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// States were asked for that the cache does not have.
    #[error("{}: has no row of {count} of the states asked for: {}", path.display(), examples.join(", "))]
    Unknown {
        /// The cache.
        path: PathBuf,
        /// How many states.
        count: usize,
        /// The first few.
        examples: Vec<String>,
    },
    /// Rows that fail the row checks, found by a strict opening.
    #[error("{}: {count} bad rows of {rows}; the first: {}. `ebm-encode audit` lists them all", path.display(), examples.join("; "))]
    BadRows {
        /// The file or folder.
        path: PathBuf,
        /// How many rows are bad.
        count: usize,
        /// How many rows there are.
        rows: usize,
        /// The first few, in words.
        examples: Vec<String>,
    },
    /// Two things made by different encoders were about to be combined.
    #[error("{}: made by another encoder than {other}; different: {}", path.display(), join(differences))]
    IdentityMismatch {
        /// The cache.
        path: PathBuf,
        /// What it was to be combined with.
        other: String,
        /// The fields that differ.
        differences: Vec<FieldDifference>,
    },
    /// Another process writes this output.
    #[error("{}: another process is writing this output\nhint: wait for it, or choose another output", path.display())]
    Locked {
        /// The output.
        path: PathBuf,
    },
    /// Another process changed the output after it was opened. Nothing was replaced, and the rows that
    /// were saved stay for the next writer.
    #[error("{}: another process changed this output after it was opened; nothing was replaced\nhint: run the same command again; it resumes from the rows that were saved", path.display())]
    Conflict {
        /// The output.
        path: PathBuf,
    },
    /// An earlier run's rows failed verification and may not be resumed.
    #[error("{}: the rows of an earlier run failed verification ({detail}); run again with overwrite to re-encode them", path.display())]
    Rejected {
        /// The work folder.
        path: PathBuf,
        /// Why they were rejected.
        detail: String,
    },
    /// The caller's arguments do not fit together.
    #[error("{0}")]
    Argument(String),
}

impl CacheError {
    pub(crate) fn io(path: &Path, action: &'static str, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            let detail = "no such file or folder".to_owned();
            return Self::NotFound { path: path.to_owned(), detail };
        }
        Self::Io { path: path.to_owned(), action, error }
    }

    pub(crate) fn format(path: &Path, detail: impl Into<String>) -> Self {
        Self::Format { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn row(path: &Path, row: u64, detail: impl Into<String>) -> Self {
        Self::Row { path: path.to_owned(), row, detail: detail.into() }
    }
}

fn join(differences: &[FieldDifference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
