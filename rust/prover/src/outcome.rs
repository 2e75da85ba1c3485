//! Exit codes.

use std::io;
use std::process::ExitCode;

use ebm_encode::cache::CacheError;

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// Rows or checks failed; they have been named.
    CheckFailed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good => Self::SUCCESS,
            Outcome::CheckFailed => Self::from(1),
        }
    }
}

/// 2 where the input cannot be used, 1 where rows fail the checks.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<CacheError>() {
        Some(CacheError::BadRows { .. }) => ExitCode::from(1),
        _ => ExitCode::from(2),
    }
}

/// Whether whoever read the output has seen enough (`| head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
