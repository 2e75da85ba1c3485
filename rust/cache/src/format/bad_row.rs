//! Why a row is bad.

use std::fmt;

use crate::format::footer::StateKey;

/// Why a row is bad.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum BadRow {
    /// A value is NaN or infinite.
    NonFinite {
        /// The first such column.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// The norm is zero or as good as zero.
    ZeroNorm {
        /// The norm.
        norm: f32,
    },
    /// The norm is far outside what is usual among the other rows.
    NormOutlier {
        /// The norm.
        norm: f32,
        /// The median norm of the other rows.
        median: f32,
    },
    /// The row equals, up to rounding, the row of another state with other tokens.
    Duplicate {
        /// The other state.
        of: StateKey,
        /// The other row's number, in the order in which the checker saw the rows.
        row: u64,
    },
    /// The same state has another row that differs by more than rounding.
    Conflict {
        /// The other row's number, in the order in which the checker saw the rows.
        row: u64,
    },
}

impl BadRow {
    /// A short name for counting: `non_finite`, `zero_norm`, `norm_outlier`, `duplicate`, `conflict`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NonFinite { .. } => "non_finite",
            Self::ZeroNorm { .. } => "zero_norm",
            Self::NormOutlier { .. } => "norm_outlier",
            Self::Duplicate { .. } => "duplicate",
            Self::Conflict { .. } => "conflict",
        }
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonFinite { column, value } => write!(f, "value {value} in column {column}"),
            Self::ZeroNorm { norm } => write!(f, "norm {norm:e} is zero"),
            Self::NormOutlier { norm, median } => {
                write!(f, "norm {norm:e} is far from the median {median:e}")
            }
            Self::Duplicate { row, .. } => {
                write!(f, "equal, up to rounding, to row {row}, which is another state's")
            }
            Self::Conflict { row } => write!(f, "differs from row {row} of the same state"),
        }
    }
}
