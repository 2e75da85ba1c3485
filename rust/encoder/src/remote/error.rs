//! What can go wrong with an encoder's server.

use std::time::Duration;

use crate::EncoderError;

/// Kinds of [`EncoderError::Failed`], as the exceptions of the Python package are called.
const SERVER: &str = "ServerError";
const UNSAFE_SERVER: &str = "UnsafeServerError";

/// Why a server gives no embeddings.
///
/// As an [`EncoderError`] it is of the kind `ServerError`, or `UnsafeServerError` for a wrong answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// An option has no meaning.
    #[error("`{option}`: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The token cannot be read, or is no header value. The message does not show it.
    #[error(
        "the server's token: {place}: {reason}\nhint: the token that the server was started with"
    )]
    Token {
        /// The file or the environment variable.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer came, also when asked again.
    #[error("{url}: {reason} ({attempts} attempts)\nhint: is `ebm-encode serve` running there?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// How often.
        attempts: usize,
        /// What happened the last time.
        reason: String,
    },
    /// A request took too long. It is not sent again: the server may still be at work on it.
    #[error(
        "{url}: no whole answer within {limit:?}\n\
         hint: raise the time limit, or ask for fewer states at a time"
    )]
    TimedOut {
        /// What was asked.
        url: String,
        /// The time limit.
        limit: Duration,
    },
    /// The server answered with an error.
    #[error("{url}: status {status}: {message}{}", hint_of(*status))]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What the server says, its first 500 characters.
        message: String,
    },
    /// Requests failed one after the other, so none is sent for a while.
    #[error(
        "{url}: not asked: its last requests all failed, and the next is sent up to {wait:?} after \
         them\nhint: look into the server's log; is `ebm-encode serve` running there?"
    )]
    Open {
        /// The server.
        url: String,
        /// How long the server is left alone.
        wait: Duration,
    },
    /// Another server answers there.
    #[error("{url}: is not ebm-encode: {reason}\nhint: give the address of `ebm-encode serve`")]
    OtherSoftware {
        /// What was asked.
        url: String,
        /// What was found.
        reason: String,
    },
    /// The server has another encoder than the one that was expected, or than at connect.
    #[error(
        "{url}: has another encoder: its identity is {found}, expected {expected}{}\n\
         hint: start the server with the former model and options, or connect again and write to \
         another cache",
        shown(differs)
    )]
    OtherEncoder {
        /// What was asked.
        url: String,
        /// Digest of the identity that was expected.
        expected: String,
        /// Digest of the server's identity.
        found: String,
        /// The fields that differ, where both identities are known.
        differs: Vec<String>,
    },
    /// The answer is not what the endpoint answers. None of its embeddings is used.
    #[error(
        "{url}: a wrong answer: {reason}\n\
         hint: is it `ebm-encode serve` of this version, and does a proxy change its answers?"
    )]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system gives no thread, or no network.
    #[error("cannot start the server's client: {0}")]
    Start(String),
    /// The client was made in another process, before a fork.
    #[error("the client was made before this process was forked\nhint: connect after the fork")]
    Forked,
}

impl RemoteError {
    /// Whether it is about a server that does not answer, in contrast to one that refuses.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

impl From<RemoteError> for EncoderError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Forked => Self::Forked,
            error @ RemoteError::Answer { .. } => Self::failed(UNSAFE_SERVER, error.to_string()),
            error => Self::failed(SERVER, error.to_string()),
        }
    }
}

fn shown(differs: &[String]) -> String {
    if differs.is_empty() { String::new() } else { format!(": {}", differs.join(", ")) }
}

fn hint_of(status: u16) -> &'static str {
    match status {
        300..=399 => "\nhint: give the address that the server redirects to",
        401 | 403 => "\nhint: give the token that the server was started with",
        404 => "\nhint: is that the address of `ebm-encode serve`?",
        429 => "\nhint: fewer requests at a time, more retries, or a longer queue of the server",
        500.. => "\nhint: look into the server's log",
        _ => "",
    }
}
