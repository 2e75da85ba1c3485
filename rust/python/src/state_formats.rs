//! Printed forms of proof states.

use std::path::PathBuf;

use ebm_cache::{Cache, OpenMode, storage};
use ebm_search::state_format::{
    STATE_FORMAT_FIELD, StateFormat, StateFormatError, convert, detect, overlap, source_format,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::Value;

use crate::errors::{argument_error, cache_error, state_format_error};
use crate::texts::Texts;
use crate::waiting::interruptible;

/// Texts, `None` where a state is refused; and the index of each of these, with the reason.
type Converted = (Vec<Option<String>>, Vec<(usize, String)>);

fn format(name: &str) -> PyResult<StateFormat> {
    name.parse().map_err(|error: StateFormatError| argument_error(error.to_string()))
}

#[pyfunction]
pub(crate) fn state_format_name(name: &str) -> PyResult<&'static str> {
    format(name).map(StateFormat::name)
}

#[pyfunction]
pub(crate) fn detect_state_formats(state: &str) -> Vec<&'static str> {
    detect(state).into_iter().map(StateFormat::name).collect()
}

#[pyfunction]
#[pyo3(signature = (states, source, target))]
pub(crate) fn source_format_of(
    py: Python<'_>,
    states: Texts,
    source: Option<&str>,
    target: &str,
) -> PyResult<&'static str> {
    let (source, target) = (source.map(format).transpose()?, format(target)?);
    let texts = || states.0.iter().map(AsRef::as_ref);
    py.detach(|| source_format(source, target, texts()))
        .map(StateFormat::name)
        .map_err(state_format_error)
}

#[pyfunction]
pub(crate) fn convert_states(
    py: Python<'_>,
    states: Texts,
    source: &str,
    target: &str,
) -> PyResult<Converted> {
    let (source, target) = (format(source)?, format(target)?);
    let converted = py.detach(|| {
        let mut refused = Vec::new();
        let texts = states.0.iter().enumerate().map(|(number, state)| {
            match convert(state, source, target) {
                Ok(text) => Some(text.into_owned()),
                Err(error) => {
                    refused.push((number, error.to_string()));
                    None
                }
            }
        });
        (texts.collect(), refused)
    });
    Ok(converted)
}

#[pyfunction]
#[pyo3(signature = (cache, states, source=None))]
pub(crate) fn state_overlap<'py>(
    py: Python<'py>,
    cache: PathBuf,
    states: Texts,
    source: Option<&str>,
) -> PyResult<Bound<'py, PyDict>> {
    let source = source.map(format).transpose()?;
    let name = cache.display().to_string();
    let remote = storage::is_remote(&cache).map_err(cache_error)?;
    // A mapped cache reads texts alone, which is all that is asked for.
    let mode = if remote { OpenMode::InMemory } else { OpenMode::Mapped };
    let cache = interruptible(py, move || Cache::open(cache, mode))?.map_err(cache_error)?;
    let field = cache.identity().and_then(|identity| identity.extra.get(STATE_FORMAT_FIELD));
    let held = field.and_then(Value::as_str).map(format).transpose()?.unwrap_or_default();
    let texts: Vec<&str> = states.0.iter().map(AsRef::as_ref).collect();
    let found = py.detach(|| overlap(&texts, source, |state| cache.position(state).is_some()));
    let result = PyDict::new(py);
    result.set_item("states", found.states)?;
    result.set_item("found", found.found)?;
    result.set_item("format", held.name())?;
    let converted = found.converted.map(|converted| (converted.to.name(), converted.found));
    result.set_item("converted_to", converted.map(|(to, _)| to))?;
    result.set_item("found_converted", converted.map(|(_, found)| found))?;
    result.set_item("message", found.to_string())?;
    result.set_item("hint", found.hint(&name, held))?;
    Ok(result)
}
