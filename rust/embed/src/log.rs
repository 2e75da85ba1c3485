//! What the Python package logs, as `tracing` events.

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

/// Target of the events.
const TARGET: &str = "ebm_encode_python";

/// A Python function that takes a level, a logger's name and a message.
pub(crate) fn forward(py: Python<'_>) -> PyResult<Bound<'_, PyCFunction>> {
    let emit = |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<()> {
        let (level, logger, message): (u32, String, String) = arguments.extract()?;
        match level {
            40.. => tracing::error!(target: TARGET, logger, "{message}"),
            30.. => tracing::warn!(target: TARGET, logger, "{message}"),
            20.. => tracing::info!(target: TARGET, logger, "{message}"),
            _ => tracing::debug!(target: TARGET, logger, "{message}"),
        }
        Ok(())
    };
    PyCFunction::new_closure(py, Some(c"log_to"), None, emit)
}
