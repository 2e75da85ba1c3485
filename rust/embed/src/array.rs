//! The array that Python writes embeddings into.

use numpy::{PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::exception::PythonException;

/// Calls Python with a float32 array `[count, dim]`, and copies what Python wrote into `rows`.
///
/// The array's memory is Python's own. Whatever keeps a reference to it, a variable or the
/// traceback of an exception, keeps it alive and can write to it later; `rows` has a copy by then.
/// Lending the memory of `rows` would save that copy, some microseconds for each embedding, and
/// every such reference would have to end the process. What Python does not write is NaN.
pub(crate) fn with_array<'py, T>(
    py: Python<'py>,
    rows: &mut [f32],
    dim: usize,
    call: impl FnOnce(&Bound<'py, PyArray2<f32>>) -> PyResult<T>,
) -> Result<T, PythonException> {
    let plain = |error: PyErr| PythonException::of(py, &error);
    let count = rows.len().checked_div(dim).unwrap_or(0);
    let array = unwritten(py, count, dim).map_err(plain)?;
    // As plain data: a traceback would hold the frames in which the array was a variable.
    let result = call(&array).map_err(plain)?;
    copy(&array, count, dim, rows).map_err(plain)?;
    Ok(result)
}

fn unwritten(py: Python<'_>, count: usize, dim: usize) -> PyResult<Bound<'_, PyArray2<f32>>> {
    let array = PyArray2::<f32>::zeros(py, [count, dim], false);
    array.try_readwrite()?.as_slice_mut()?.fill(f32::NAN);
    Ok(array)
}

fn copy(
    array: &Bound<'_, PyArray2<f32>>,
    count: usize,
    dim: usize,
    rows: &mut [f32],
) -> PyResult<()> {
    let written = array.try_readonly()?;
    if array.shape() != [count, dim] {
        let message = format!(
            "encode_into was given an array of shape [{count}, {dim}], and left it with {:?}",
            array.shape()
        );
        return Err(PyValueError::new_err(message));
    }
    rows.copy_from_slice(written.as_slice()?);
    Ok(())
}
