//! numpy arrays over memory that Rust owns. The only unsafe code of this crate.

use numpy::ndarray::{ArrayView1, ArrayView2};
use numpy::{PyArray1, PyArray2};
use pyo3::intern;
use pyo3::prelude::*;

use crate::cache::PyEmbeddingCache;

/// A read-only view of one row of a cache, float32 `[dim]`.
pub(crate) fn row_view<'py>(
    cache: &Bound<'py, PyEmbeddingCache>,
    row: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let values = ArrayView1::from(cache.get().cache.row(row));
    // SAFETY: the values belong to the cache object, which the array keeps alive as its base, and
    // which is frozen: its buffer is never moved, grown or written.
    #[expect(unsafe_code, reason = "the view's lifetime is tied to its base object")]
    let view = unsafe { PyArray1::borrow_from_array(&values, cache.clone().into_any()) };
    read_only(&view)?;
    Ok(view)
}

/// A read-only view of all rows of a cache, float32 `[len, dim]`.
pub(crate) fn matrix_view<'py>(
    cache: &Bound<'py, PyEmbeddingCache>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let inner = &cache.get().cache;
    let shape = (inner.len(), inner.dim());
    let values = ArrayView2::from_shape(shape, inner.matrix())
        .map_err(|error| crate::errors::argument_error(error.to_string()))?;
    // SAFETY: as for `row_view`.
    #[expect(unsafe_code, reason = "the view's lifetime is tied to its base object")]
    let view = unsafe { PyArray2::borrow_from_array(&values, cache.clone().into_any()) };
    read_only(&view)?;
    Ok(view)
}

/// Clears the write flag; numpy lets nobody set it again, since the base is no array of its own.
///
/// Not by way of a borrow of the array, which fails while another thread reads the same memory.
fn read_only(view: &Bound<'_, PyAny>) -> PyResult<()> {
    view.call_method1(intern!(view.py(), "setflags"), (false,))?;
    Ok(())
}
