//! Python exceptions as plain data: nothing of them refers to the interpreter.

use ebm_encoder::EncoderError;
use pyo3::prelude::*;
use pyo3::types::PyTracebackMethods;

/// What a Python exception says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct PythonException {
    /// Name of its class.
    pub kind: String,
    /// Its text.
    pub message: String,
    /// Where it was raised, as Python would print it.
    pub traceback: Option<String>,
}

impl PythonException {
    /// Takes down an exception.
    pub(crate) fn of(py: Python<'_>, error: &PyErr) -> Self {
        let unknown = |_| "an exception without a name".to_owned();
        let kind = error.get_type(py).name().map_or_else(unknown, |name| name.to_string());
        let message = error
            .value(py)
            .str()
            .map_or_else(|_| "<unprintable>".to_owned(), |text| text.to_string());
        let traceback = error.traceback(py).and_then(|traceback| traceback.format().ok());
        Self { kind, message, traceback }
    }
}

#[cfg(feature = "interpreter")]
/// Attaches this thread for a while; exceptions come back as plain data.
pub(crate) fn attach<T>(run: impl FnOnce(Python<'_>) -> PyResult<T>) -> Result<T, PythonException> {
    Python::attach(|py| run(py).map_err(|error| PythonException::of(py, &error)))
}

impl From<PythonException> for EncoderError {
    fn from(exception: PythonException) -> Self {
        let PythonException { kind, message, traceback } = exception;
        Self::Failed { kind, message, trace: traceback }
    }
}
