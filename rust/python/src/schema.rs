//! The cache's Arrow schema over the Arrow `PyCapsule` interface.

use arrow_schema::ffi::FFI_ArrowSchema;
use ebm_cache::cache_schema;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::errors::argument_error;

#[pyclass(frozen, name = "CacheSchema", module = "ebm_encode._core")]
pub(crate) struct PyCacheSchema;

#[pymethods]
impl PyCacheSchema {
    #[new]
    fn new() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "a Python method")]
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(&*cache_schema())
            .map_err(|error| argument_error(error.to_string()))?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }
}
