//! Everything that can go wrong when states are encoded.

use std::time::Duration;

/// Why there are no rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// The encoder itself failed; what it says of it, and where.
    #[error("{kind}: {message}")]
    Failed {
        /// What kind of failure, in the encoder's own words (a Python exception's type).
        kind: String,
        /// What it says.
        message: String,
        /// Where it happened, if the encoder tells (a Python traceback).
        trace: Option<String>,
    },
    /// What was asked has no meaning.
    #[error("{0}")]
    Argument(String),
    /// The answer did not come in time. The caller has given up; nothing is written for it.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The queue is full; ask again later, or ask less.
    #[error("the queue is full: {0} requests are waiting")]
    Busy(usize),
    /// The encoder has been shut down.
    #[error("the encoder has been shut down")]
    Closed,
}

/// Result with an [`EncoderError`].
pub type EncoderResult<T> = Result<T, EncoderError>;
