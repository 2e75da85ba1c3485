//! What can go wrong with a head.

use std::path::PathBuf;

use ebm_cache::{CacheError, FieldDifference};

/// Why a head cannot be used, or an embedding has no energy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// There is no such file.
    #[error("{}: there is no such head file", path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The file cannot be read, or its URL not be used.
    #[error(transparent)]
    Unreadable(#[from] CacheError),
    /// The file is not a head, damaged, or of a later version.
    #[error("{}: {detail}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Which tensor or key, what was found, and what was expected.
        detail: String,
    },
    /// The head was trained on embeddings of a different encoder.
    #[error(
        "{}: trained on embeddings of a different encoder than {other}; different: {}\n\
         hint: train a head on embeddings of that encoder",
        path.display(),
        join(differences)
    )]
    IdentityMismatch {
        /// The head's file.
        path: PathBuf,
        /// What it was to be used with.
        other: String,
        /// The fields that differ.
        differences: Vec<FieldDifference>,
    },
    /// The head takes embeddings of another length.
    #[error("{}: takes embeddings of {expected} values, those of {other} have {dim}", path.display())]
    Dim {
        /// The head's file.
        path: PathBuf,
        /// What it was to be used with.
        other: String,
        /// Length of those embeddings.
        dim: usize,
        /// Length that the head takes.
        expected: usize,
    },
    /// The values are no whole number of embeddings.
    #[error("rows hold {values} values, expected a multiple of {dim}")]
    Length {
        /// How many values there are.
        values: usize,
        /// Length of an embedding.
        dim: usize,
    },
    /// An embedding has a value that is NaN or infinite.
    #[error("row {row}: value {value} in column {column}, expected finite numbers")]
    NonFinite {
        /// Number of the row, from 0.
        row: usize,
        /// Number of the column, from 0.
        column: usize,
        /// The value.
        value: f32,
    },
    /// An energy, or its z-score, is beyond float32.
    #[error("row {row}: its energy is beyond float32\nhint: are its values of the head's encoder?")]
    Overflow {
        /// Number of the row, from 0.
        row: usize,
    },
}

/// Result with a [`HeadError`].
pub type HeadResult<T> = Result<T, HeadError>;

fn join(differences: &[FieldDifference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
