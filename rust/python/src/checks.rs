//! Row checks, audits and descriptions.

use std::path::PathBuf;

use ebm_cache::BadRow;
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::errors::{argument_error, cache_error};
use crate::json;
use crate::waiting::interruptible;

#[pyclass(frozen, get_all, name = "BadRow", module = "ebm_encode._core")]
#[derive(Clone)]
pub(crate) struct PyBadRow {
    kind: &'static str,
    reason: String,
    duplicate_of: Option<String>,
    other_row: Option<u64>,
}

impl From<BadRow> for PyBadRow {
    fn from(bad: BadRow) -> Self {
        let (duplicate_of, other_row) = match &bad {
            BadRow::Duplicate { of, row } => (Some(of.to_hex()), Some(*row)),
            BadRow::Conflict { row } => (None, Some(*row)),
            _ => (None, None),
        };
        Self { kind: bad.kind(), reason: bad.to_string(), duplicate_of, other_row }
    }
}

#[pymethods]
impl PyBadRow {
    fn __repr__(&self) -> String {
        format!("BadRow({}: {})", self.kind, self.reason)
    }
}

/// A C-contiguous float32 matrix as a slice.
pub(crate) fn matrix<'a>(rows: &'a PyReadonlyArray2<'_, f32>) -> PyResult<&'a [f32]> {
    // The library lends the memory of a matrix in Fortran's order as well, column by column.
    if !rows.is_c_contiguous() {
        return Err(argument_error("rows: must be C-contiguous"));
    }
    rows.as_slice().map_err(|error| argument_error(format!("rows: {error}")))
}

#[pyfunction]
pub(crate) fn check_rows(
    py: Python<'_>,
    states: Vec<PyBackedStr>,
    ids: PyReadonlyArray1<'_, u32>,
    offsets: PyReadonlyArray1<'_, i64>,
    rows: PyReadonlyArray2<'_, f32>,
) -> PyResult<Vec<Option<PyBadRow>>> {
    let dim = rows.shape()[1];
    let flat = |error| argument_error(format!("ids and offsets: {error}"));
    let (ids, offsets) = (ids.as_slice().map_err(flat)?, offsets.as_slice().map_err(flat)?);
    let tokens = sequences(ids, offsets)?;
    let rows = matrix(&rows)?;
    if states.len() != tokens.len() || rows.len() != states.len() * dim {
        let (states, tokens) = (states.len(), tokens.len());
        return Err(argument_error(format!("{states} states, {tokens} token sequences")));
    }
    let verdicts = py.detach(|| {
        let states: Vec<&str> = states.iter().map(|state| &**state).collect();
        ebm_cache::check_rows(&states, &tokens, rows, dim)
    });
    Ok(verdicts.into_iter().map(|verdict| verdict.err().map(PyBadRow::from)).collect())
}

fn sequences<'a>(ids: &'a [u32], offsets: &[i64]) -> PyResult<Vec<&'a [u32]>> {
    let cut = |pair: &[i64]| {
        let (start, end) = (usize::try_from(pair[0]).ok()?, usize::try_from(pair[1]).ok()?);
        ids.get(start..end)
    };
    let cut: Option<Vec<&[u32]>> = offsets.windows(2).map(cut).collect();
    cut.ok_or_else(|| argument_error("offsets do not rise within ids"))
}

#[pyfunction]
#[pyo3(signature = (path, *, examples = 5))]
pub(crate) fn audit(py: Python<'_>, path: PathBuf, examples: usize) -> PyResult<Bound<'_, PyAny>> {
    let report =
        interruptible(py, move || ebm_cache::audit(path, examples))?.map_err(cache_error)?;
    let report = serde_json::to_value(report).map_err(|error| argument_error(error.to_string()))?;
    json::to_python(py, &report)
}

#[pyfunction]
pub(crate) fn describe(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyAny>> {
    let files = interruptible(py, move || ebm_cache::describe(path))?.map_err(cache_error)?;
    let files = serde_json::to_value(files).map_err(|error| argument_error(error.to_string()))?;
    json::to_python(py, &files)
}
