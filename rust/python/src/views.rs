//! numpy arrays over memory that Rust owns. The only unsafe code of this crate.
//!
//! numpy refuses to write them. torch does not ask; the pages themselves are protected against that.

use std::ops::Range;

use numpy::ndarray::{ArrayView1, ArrayView2};
use numpy::{PyArray1, PyArray2};
use pyo3::PyClass;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;

use crate::errors::argument_error;

/// An object that lends its memory.
///
/// # Safety
/// The values stay where they are, and as they are, for as long as the object lives.
#[expect(unsafe_code, reason = "what a view of it relies on")]
pub(crate) unsafe trait Lends: PyClass<Frozen = True> + Sync {
    /// All values that it lends.
    fn lent(&self) -> &[f32];
}

/// A read-only view of some values of an object, float32 `[range.len()]`.
pub(crate) fn view<'py, T: Lends>(
    owner: &Bound<'py, T>,
    range: Range<usize>,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let values = owner.get().lent().get(range);
    let values = ArrayView1::from(values.ok_or_else(|| argument_error("no such row"))?);
    // SAFETY: the values belong to `owner`, which the array keeps alive as its base; `Lends` says
    // that they stay as they are until then.
    #[expect(unsafe_code, reason = "the view's lifetime is tied to its base object")]
    let view = unsafe { PyArray1::borrow_from_array(&values, owner.clone().into_any()) };
    read_only(&view)?;
    Ok(view)
}

/// A read-only view of all values of an object, float32 `shape`.
pub(crate) fn matrix_view<'py, T: Lends>(
    owner: &Bound<'py, T>,
    shape: [usize; 2],
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let values = ArrayView2::from_shape(shape, owner.get().lent())
        .map_err(|error| argument_error(error.to_string()))?;
    // SAFETY: as for `view`.
    #[expect(unsafe_code, reason = "the view's lifetime is tied to its base object")]
    let view = unsafe { PyArray2::borrow_from_array(&values, owner.clone().into_any()) };
    read_only(&view)?;
    Ok(view)
}

/// Clears the write flag; numpy lets nobody set it again, since the base is no array.
///
/// Not by way of a borrow of the array, which fails while another thread reads the same memory.
fn read_only(view: &Bound<'_, PyAny>) -> PyResult<()> {
    view.call_method1(intern!(view.py(), "setflags"), (false,))?;
    Ok(())
}
