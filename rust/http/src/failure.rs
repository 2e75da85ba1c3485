//! Why there is no answer.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;

/// Characters of a server's error that are passed on.
const MESSAGE: usize = 500;

/// Why there is no answer, after all attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or it broke, or took too long each time.
    Unreachable {
        /// How often the server was asked.
        attempts: usize,
        /// What happened the last time.
        reason: String,
    },
    /// A request took too long, and is not sent again.
    TimedOut {
        /// The time limit.
        limit: Duration,
    },
    /// The server answered with an error.
    Status {
        /// The status.
        status: u16,
        /// What the server says; and how often it was asked, where asking again may help.
        message: String,
    },
    /// The answer is longer than it may be.
    TooLarge {
        /// What it may be, in bytes.
        most: usize,
    },
}

impl Failure {
    /// What happened.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable { reason, .. } => reason.clone(),
            Self::TimedOut { limit } => format!("no whole answer within {limit:?}"),
            Self::Status { status, message } => format!("status {status}: {message}"),
            Self::TooLarge { most } => format!("an answer of more than {most} bytes"),
        }
    }
}

/// A text in the body of an error, where servers put what they say; plain text, of a proxy, as it is.
///
/// # Arguments
/// * `places`: JSON pointers; the first with a text counts.
/// * `hint`: Where a hint is, which follows in brackets.
/// * `shown`: Makes it one piece of a message.
#[must_use]
pub fn message_of(
    body: &[u8],
    places: &[&str],
    hint: Option<&str>,
    shown: impl Fn(&str) -> String,
) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let text = |place: &str| parsed.as_ref()?.pointer(place)?.as_str();
    let found = places.iter().find_map(|place| text(place));
    let found = found.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    let mut message = shown(&found);
    if let Some(hint) = hint.and_then(text).filter(|hint| !hint.is_empty()) {
        message = format!("{message} ({})", shown(hint));
    }
    if message.is_empty() {
        "no message".to_owned()
    } else {
        message.chars().take(MESSAGE).collect()
    }
}

/// The cause behind an error, which says what happened.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
