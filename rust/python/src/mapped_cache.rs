//! `MappedCache`.

use std::path::PathBuf;
use std::sync::Arc;

use ebm_cache::{Cache, MappedCache, free_memory};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;

use crate::cache::{PyCache, fill, open_options};
use crate::errors::cache_error;
use crate::waiting::interruptible;

/// Whether `auto` would map the cache rather than hold it in memory.
#[pyfunction]
pub(crate) fn prefers_mapped(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    let prefers = move || Cache::prefers_mapped(path, free_memory());
    interruptible(py, prefers)?.map_err(cache_error)
}

#[pyclass(frozen, extends = PyCache, name = "MappedCache", module = "ebm_encode._core")]
pub(crate) struct PyMappedCache {
    cache: Arc<MappedCache>,
}

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
        let cache = Arc::new(cache.map_err(cache_error)?);
        Py::new(py, (Self { cache: Arc::clone(&cache) }, PyCache::of(cache, options)))
    }

    fn __getitem__<'py>(
        &self,
        py: Python<'py>,
        state: &str,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        self.get(py, state)?.ok_or_else(|| PyKeyError::new_err(state.to_owned()))
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        state: &str,
    ) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        let Some(row) = self.cache.position(state) else { return Ok(None) };
        let shape = [1, self.cache.dim()];
        let rows = fill(py, shape, None, |out| self.cache.gather_rows(&[row], out))?;
        rows.reshape([self.cache.dim()]).map(Some)
    }
}
