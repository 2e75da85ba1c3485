//! Plans of forward passes.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;

use crate::errors::argument_error;

#[pyfunction]
pub(crate) fn plan_padded(
    lengths: PyReadonlyArray1<'_, u32>,
    max_tokens: usize,
    max_rows: usize,
) -> PyResult<Vec<Vec<usize>>> {
    let lengths =
        lengths.as_slice().map_err(|error| argument_error(format!("lengths: {error}")))?;
    ebm_encode::packing::plan_padded(lengths, max_tokens, max_rows)
        .map_err(|error| argument_error(error.to_string()))
}
