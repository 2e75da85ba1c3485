//! `MappedCache`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use ebm_cache::{Cache, MappedCache, OpenOptions, free_memory};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::cache::{fill, numbers, open_options, positions, reduce, runs, view_of};
use crate::errors::cache_error;
use crate::identity::PyIdentity;
use crate::json;
use crate::texts::Texts;
use crate::waiting::interruptible;

/// Whether `auto` would map the cache rather than hold it in memory.
#[pyfunction]
pub(crate) fn prefers_mapped(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    let prefers = move || Cache::prefers_mapped(path, free_memory());
    interruptible(py, prefers)?.map_err(cache_error)
}

#[pyclass(frozen, name = "MappedCache", module = "ebm_encode._core")]
pub(crate) struct PyMappedCache {
    pub(crate) cache: Arc<MappedCache>,
    options: OpenOptions,
}

#[pymethods]
impl PyMappedCache {
    #[staticmethod]
    #[pyo3(signature = (path, *, strict = true, verify_checksums = true))]
    fn open(py: Python<'_>, path: PathBuf, strict: bool, verify_checksums: bool) -> PyResult<Self> {
        let options = open_options(strict, verify_checksums);
        let cache = interruptible(py, move || MappedCache::open_with(path, options))?;
        Ok(Self { cache: Arc::new(cache.map_err(cache_error)?), options })
    }

    fn __len__(&self) -> usize {
        self.cache.len()
    }

    fn __contains__(&self, state: &str) -> bool {
        self.cache.position(state).is_some()
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

    fn positions<'py>(
        &self,
        py: Python<'py>,
        states: Texts,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = py.detach(|| self.cache.positions(&states.0)).map_err(cache_error)?;
        Ok(positions(py, rows))
    }

    #[pyo3(signature = (states, out = None))]
    fn gather<'py>(
        &self,
        py: Python<'py>,
        states: Texts,
        out: Option<Bound<'py, PyArray2<f32>>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let shape = [states.0.len(), self.cache.dim()];
        fill(py, shape, out, |rows| self.cache.gather(&states.0, rows))
    }

    #[pyo3(signature = (rows, out = None))]
    fn gather_rows<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'py, i64>,
        out: Option<Bound<'py, PyArray2<f32>>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = numbers(&rows)?;
        let shape = [rows.len(), self.cache.dim()];
        fill(py, shape, out, |out| self.cache.gather_rows(&rows, out))
    }

    fn states<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, (0..self.cache.len()).map(|row| self.cache.state(row)))
    }

    fn require_identity(&self, identity: &PyIdentity, name: &str) -> PyResult<()> {
        self.cache.require_identity(&identity.identity, name).map_err(cache_error)
    }

    #[getter]
    fn dim(&self) -> usize {
        self.cache.dim()
    }

    #[getter]
    fn identity(&self) -> Option<PyIdentity> {
        self.cache.identity().cloned().map(PyIdentity::from)
    }

    #[getter]
    fn provenance<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.cache.provenance().iter().map(|value| json::to_python(py, value)).collect()
    }

    #[getter]
    fn runs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        runs(py, self.cache.runs())
    }

    #[getter]
    fn path(&self) -> OsString {
        self.cache.path().into()
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().states(slf.py())?.call_method0("__iter__")
    }

    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view_of(slf.as_any(), "KeysView")
    }

    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view_of(slf.as_any(), "ValuesView")
    }

    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view_of(slf.as_any(), "ItemsView")
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        reduce(slf.as_any(), slf.get().options)
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.cache)
    }
}
