//! Exit codes.

use std::io;

use ebm_cache::CacheError;

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    /// States or checks failed; they have been reported.
    CheckFailed,
    /// Interrupted; what was finished is saved. The code of a process that the signal ends.
    Interrupted(u8),
}

impl Outcome {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::CheckFailed => 1,
            Self::Interrupted(code) => code,
        }
    }
}

/// Whoever read the output went away (`| head`): as a tool that SIGPIPE ends.
pub(crate) const CLOSED_PIPE: u8 = 141;

/// 2 where the input cannot be used, 1 where embeddings fail the checks.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<CacheError>() {
        Some(CacheError::BadRows { .. }) => 1,
        _ => 2,
    }
}

/// Whether whoever read the output has seen enough (`| head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
