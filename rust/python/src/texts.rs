//! States of Python callers, in whatever collection they hold them.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyList;

/// States that all are text.
///
/// A list of `str` is taken as it is; anything else is sorted out by `ebm_encode.texts`, which
/// raises an `ArgumentError` with the index of what is not text.
pub(crate) struct Texts(pub(crate) Vec<PyBackedStr>);

impl<'a, 'py> FromPyObject<'a, 'py> for Texts {
    type Error = PyErr;

    fn extract(states: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Some(texts) = plain(&states) {
            return Ok(Self(texts));
        }
        let module = states.py().import("ebm_encode.texts")?;
        Ok(Self(module.getattr("texts_of")?.call1((states,))?.extract()?))
    }
}

/// States of which some may not be text.
pub(crate) struct SomeTexts {
    /// Every state; empty where it is not text.
    pub(crate) texts: Vec<PyBackedStr>,
    /// Why a state is not text, by its index.
    pub(crate) wrong: HashMap<usize, String>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for SomeTexts {
    type Error = PyErr;

    fn extract(states: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Some(texts) = plain(&states) {
            return Ok(Self { texts, wrong: HashMap::new() });
        }
        let kind = states.py().import("ebm_encode.texts")?.getattr("Texts")?;
        let sorted = kind.call_method1("of", (states,))?;
        Ok(Self {
            texts: sorted.getattr("texts")?.extract()?,
            wrong: sorted.getattr("wrong")?.extract()?,
        })
    }
}

/// The texts of a list of `str`; none if it is no list, or something in it is not text.
fn plain(states: &Bound<'_, PyAny>) -> Option<Vec<PyBackedStr>> {
    states.cast::<PyList>().ok()?.extract().ok()
}
