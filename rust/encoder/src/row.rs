//! Rows handed out by reference, and what is reported of each.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::EncoderError;

/// A digest of the prompt that went through the model, after any cut: of its token ids, or of what all
/// prompts share that the model rightly gives equal rows.
///
/// The rows of states with equal digests may be equal. Digests are compared within one encoder only;
/// any hash of 64 bits will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest(u64);

impl TokenDigest {
    /// A digest that the encoder computed.
    #[must_use]
    pub const fn new(digest: u64) -> Self {
        Self(digest)
    }

    /// The digest of some token ids.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(digest))
    }
}

/// What became of one state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowReport {
    /// There is a row.
    Ok {
        /// Length of the prompt in tokens, before any cut.
        tokens: usize,
        /// Whether the prompt was cut.
        truncated: bool,
        /// The token ids that went through the model. Without a digest, a row that equals another
        /// state's is always refused.
        digest: Option<TokenDigest>,
    },
    /// The row failed the row checks.
    Bad {
        /// Why.
        reason: String,
    },
    /// The prompt is longer than the encoder's longest.
    TooLong {
        /// Its length in tokens.
        tokens: usize,
    },
    /// There is no row for another reason: no token, or no memory.
    Failed {
        /// Why.
        reason: String,
    },
    /// The encoder failed on this state.
    Error(EncoderError),
}

impl RowReport {
    /// Whether there is a row.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok { .. })
    }

    /// The digest of the prompt's tokens, where there is a row and the encoder reports one.
    #[must_use]
    pub const fn digest(&self) -> Option<TokenDigest> {
        match self {
            Self::Ok { digest, .. } => *digest,
            _ => None,
        }
    }
}

impl fmt::Display for RowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok { tokens, truncated: false, .. } => write!(f, "{tokens} tokens"),
            Self::Ok { tokens, truncated: true, .. } => write!(f, "{tokens} tokens, cut"),
            Self::Bad { reason } | Self::Failed { reason } => f.write_str(reason),
            Self::Error(error) => error.fmt(f),
            Self::TooLong { tokens } => write!(f, "{tokens} tokens are too many"),
        }
    }
}

/// The memory of one batch, shared by all who got a row of it.
pub(crate) type BatchMemory = Arc<[f32]>;

/// One row, by reference into the memory of its batch; cloning copies no values.
///
/// A batch's memory lives as long as any of its rows.
#[derive(Clone)]
pub struct Row {
    batch: BatchMemory,
    start: usize,
    dim: usize,
}

impl Row {
    pub(crate) fn new(batch: &BatchMemory, index: usize, dim: usize) -> Self {
        Self { batch: Arc::clone(batch), start: index * dim, dim }
    }
}

impl Deref for Row {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.batch[self.start..self.start + self.dim]
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} values)", self.dim)
    }
}

/// The answer for one state: its report, and its row exactly if the report is [`RowReport::Ok`].
#[derive(Debug, Clone)]
pub struct Encoded {
    /// What became of the state.
    pub report: RowReport,
    /// The row.
    pub row: Option<Row>,
}

impl Encoded {
    /// An answer without a row.
    pub(crate) const fn without_row(report: RowReport) -> Self {
        Self { report, row: None }
    }

    /// The row, or the report that says why there is none.
    ///
    /// # Errors
    /// The report, if there is no row.
    pub fn into_row(self) -> Result<Row, RowReport> {
        self.row.ok_or(self.report)
    }
}
