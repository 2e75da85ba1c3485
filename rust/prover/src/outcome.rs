//! Exit codes.

use std::io;

use ebm_cache::CacheError;
use ebm_embed::EmbedError;
use ebm_encoder::EncoderError;
use ebm_encoder::remote::RemoteError;

/// The kind of an error about a server whose answers are wrong, of both languages.
const UNSAFE_SERVER: &str = "UnsafeServerError";

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

/// 2 where the input cannot be used, 1 where embeddings fail the checks or a server's answers are wrong.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let bad_rows = matches!(error.downcast_ref(), Some(CacheError::BadRows { .. }));
    let kind = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(EncoderError::Failed { kind, .. }), _) => Some(kind),
        (_, Some(EmbedError::Python(exception))) => Some(&exception.kind),
        _ => None,
    };
    let wrong_answer = matches!(error.downcast_ref(), Some(RemoteError::Answer { .. }))
        || kind.is_some_and(|kind| kind == UNSAFE_SERVER);
    if bad_rows || wrong_answer { 1 } else { 2 }
}

/// Whether whoever read the output has seen enough (`| head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
