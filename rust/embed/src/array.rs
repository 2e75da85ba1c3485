//! Rust memory lent to Python for the time of one call.

use numpy::PyArray2;
use numpy::ndarray::ArrayViewMut2;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::exception::PythonException;

/// Calls Python with a float32 array `[count, dim]` over `rows`, which Python writes.
///
/// Python must not keep the array: memory of the caller could be written at any later time. Were it
/// to, the process is ended.
pub(crate) fn with_array<'py, T>(
    py: Python<'py>,
    rows: &mut [f32],
    dim: usize,
    call: impl FnOnce(&Bound<'py, PyArray2<f32>>) -> PyResult<T>,
) -> Result<T, PythonException> {
    let count = rows.len().checked_div(dim).unwrap_or(0);
    let view = ArrayViewMut2::from_shape((count, dim), rows)
        .map_err(|error| PythonException::of(py, &PyValueError::new_err(error.to_string())))?;
    // SAFETY: the memory is borrowed until this function returns, and before it returns it makes
    // sure that no other reference to the array is left. The array owns nothing.
    #[expect(unsafe_code, reason = "Python writes into Rust's memory")]
    let array = unsafe { PyArray2::borrow_from_array(&view, py.None().into_bound(py)) };
    // As plain data: a traceback would hold the frames in which the array was a variable.
    let result = call(&array).map_err(|error| PythonException::of(py, &error));
    require_returned(py, &array);
    result
}

fn require_returned(py: Python<'_>, array: &Bound<'_, PyArray2<f32>>) {
    if references(array) == 1 {
        return;
    }
    // An exception that was handled may still be in a cycle with its frames.
    let _ = py.import("gc").and_then(|gc| gc.call_method0("collect"));
    if references(array) > 1 {
        #[expect(
            clippy::print_stderr,
            reason = "the last words; nobody may be listening elsewhere"
        )]
        {
            eprintln!(
                "ebm-encode: encode_into kept the array it was given; the memory under it is about \
                 to be used for other things, so the process ends here"
            );
        }
        std::process::abort();
    }
}

fn references(array: &Bound<'_, PyArray2<f32>>) -> isize {
    // SAFETY: the array is alive, and this thread is attached.
    #[expect(unsafe_code, reason = "PyO3 has no safe face of it")]
    unsafe {
        ffi::Py_REFCNT(array.as_ptr())
    }
}
