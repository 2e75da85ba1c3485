//! Everything that can go wrong when states are encoded.

use std::time::Duration;

/// Why there are no embeddings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// The encoder itself failed; what it reports, and where.
    #[error("{kind}: {message}")]
    Failed {
        /// What kind of failure, in the encoder's own words (a Python exception's type).
        kind: String,
        /// What it reports.
        message: String,
        /// Where it happened, if the encoder knows (a Python traceback).
        trace: Option<String>,
    },
    /// What was asked has no meaning.
    #[error("{0}")]
    Argument(String),
    /// The answer did not come in time. The caller stopped waiting; nothing is written for it.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The queue is full; ask again later, or ask less.
    #[error("the queue is full: {0} requests are waiting")]
    Busy(usize),
    /// The encoder has been shut down.
    #[error("the encoder has been shut down")]
    Closed,
    /// The caller stopped waiting.
    #[error("the caller stopped waiting")]
    Interrupted,
    /// The process was forked after the encoder was made.
    #[error(
        "the encoder's thread stayed in the process that this one was forked from\nhint: make the \
         encoder in the forked process, or start that process with spawn"
    )]
    Forked,
}

impl EncoderError {
    pub(crate) fn failed(kind: &str, message: impl Into<String>) -> Self {
        Self::Failed { kind: kind.to_owned(), message: message.into(), trace: None }
    }

    /// Answers and states that do not belong together are no answer at all.
    pub(crate) fn missing_answer() -> Self {
        Self::failed("internal error", "a state has no answer; no row is handed out")
    }
}

/// Result with an [`EncoderError`].
pub type EncoderResult<T> = Result<T, EncoderError>;
