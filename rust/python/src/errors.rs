//! Core errors as the exceptions of `ebm_encode.errors`.

use ebm_cache::CacheError;
use ebm_search::HeadError;
use ebm_search::state_format::StateFormatError;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The exception for a core error: its class by kind, its message as the error prints it.
pub(crate) fn cache_error(error: CacheError) -> PyErr {
    let class = match &error {
        CacheError::NotFound { .. } => "CacheNotFoundError",
        CacheError::Io { .. } => "CacheIOError",
        CacheError::Unknown { .. } => "UnknownStateError",
        CacheError::BadRows { .. } => "BadRowsError",
        CacheError::IdentityMismatch { .. } => "IdentityMismatchError",
        CacheError::Locked { .. } => "OutputLockedError",
        CacheError::Conflict { .. } => "OutputConflictError",
        CacheError::Rejected { .. } => "RejectedRowsError",
        CacheError::Argument(_) => "ArgumentError",
        // Format, Row, and kinds that the core may add later.
        _ => "CacheFormatError",
    };
    named(class, error.to_string())
}

/// The exception for an error of a head.
pub(crate) fn head_error(error: HeadError) -> PyErr {
    let class = match error {
        HeadError::Unreadable(error) => return cache_error(error),
        HeadError::NotFound { .. } => "HeadNotFoundError",
        HeadError::IdentityMismatch { .. } => "IdentityMismatchError",
        HeadError::Dim { .. }
        | HeadError::Length { .. }
        | HeadError::NonFinite { .. }
        | HeadError::Overflow { .. } => "ArgumentError",
        // Format, and kinds that the crate may add later.
        _ => "HeadFormatError",
    };
    named(class, error.to_string())
}

/// The exception for states that are not in a format, or cannot be converted.
pub(crate) fn state_format_error(error: StateFormatError) -> PyErr {
    match error {
        StateFormatError::Ambiguous { .. } | StateFormatError::NoSource => {
            let hint = "hint: say it with `states_in`: lean, pantograph or burnqed";
            named("StateFormatError", format!("{error}\n{hint}"))
        }
        _ => named("StateFormatError", error.to_string()),
    }
}

/// An `ArgumentError` with this message.
pub(crate) fn argument_error(message: impl Into<String>) -> PyErr {
    named("ArgumentError", message.into())
}

/// An `EncodingError` with this message.
pub(crate) fn encoding_error(message: impl Into<String>) -> PyErr {
    named("EncodingError", message.into())
}

fn named(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let class = py.import("ebm_encode.errors").and_then(|errors| errors.getattr(class));
        match class.and_then(|class| Ok(class.cast_into::<PyType>()?)) {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error,
        }
    })
}
