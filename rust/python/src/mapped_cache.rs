//! `MappedCache`.

use std::path::PathBuf;

use ebm_cache::{Cache, MappedCache, free_memory};
use pyo3::prelude::*;

use crate::cache::{PyCache, open_options};
use crate::errors::cache_error;
use crate::waiting::interruptible;

/// Whether `auto` would map the cache rather than hold it in memory.
#[pyfunction]
pub(crate) fn prefers_mapped(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    let prefers = move || Cache::prefers_mapped(path, free_memory());
    interruptible(py, prefers)?.map_err(cache_error)
}

#[pyclass(frozen, extends = PyCache, name = "MappedCache", module = "ebm_encode._core")]
pub(crate) struct PyMappedCache;

#[pymethods]
impl PyMappedCache {
    #[staticmethod]
    #[pyo3(signature = (path, *, strict = true, verify_checksums = true))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        strict: bool,
        verify_checksums: bool,
    ) -> PyResult<Py<Self>> {
        let options = open_options(strict, verify_checksums);
        let cache = interruptible(py, move || MappedCache::open_with(path, options))?;
        Py::new(py, (Self, PyCache::of(cache.map_err(cache_error)?, options)))
    }
}
