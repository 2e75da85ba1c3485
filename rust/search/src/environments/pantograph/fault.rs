//! What can be wrong with a process.

use std::time::Duration;

use crate::search::{EnvironmentError, Stop};

/// What environments of this module are called.
pub(super) const NAME: &str = "pantograph";

/// Why a process gave no answer that can be used. It must not be asked again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It ended, or closed its output.
    #[error("it {how}{errors}")]
    Died { how: String, errors: String },
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// Its answer is longer than allowed.
    #[error("an answer of more than {0} bytes\nhint: allow longer ones by `answer_bytes`")]
    TooLong(usize),
    /// Its answer is no JSON object.
    #[error("an answer that is no JSON: {0:?}")]
    Garbage(String),
    /// It has forgotten a state that it made.
    #[error("it lost a state: {0}")]
    LostState(String),
    /// Its answer gives a number that another state has: it is that to another request.
    #[error("an answer to an earlier request: it gives state {0} again")]
    OldState(u64),
    /// Its answer is JSON, but not that of a Pantograph that we know.
    #[error(
        "{command}: {reason}\nhint: this version of Pantograph speaks another protocol; known are 0.3.4 and later"
    )]
    Protocol { command: &'static str, reason: String },
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Stopped(#[from] Stop),
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Stopped(#[from] Stop),
}

pub(super) fn unavailable(reason: impl Into<String>) -> EnvironmentError {
    EnvironmentError::Unavailable { environment: NAME, reason: reason.into() }
}

pub(super) fn failed(reason: impl Into<String>) -> EnvironmentError {
    EnvironmentError::Failed { environment: NAME, reason: reason.into() }
}
