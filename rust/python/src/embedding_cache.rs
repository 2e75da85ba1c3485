//! `EmbeddingCache`.

use std::path::PathBuf;
use std::sync::Arc;

use ebm_cache::EmbeddingCache;
use numpy::{PyArray1, PyArray2};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;

use crate::cache::{PyCache, open_options};
use crate::errors::cache_error;
use crate::texts::Texts;
use crate::views::{Lends, matrix_view, view};
use crate::waiting::interruptible;

#[pyclass(frozen, extends = PyCache, name = "EmbeddingCache", module = "ebm_encode._core")]
pub(crate) struct PyEmbeddingCache {
    cache: Arc<EmbeddingCache>,
}

// SAFETY: the class is frozen, and a cache never moves, grows or writes its buffer.
#[expect(unsafe_code, reason = "views of a cache's memory")]
unsafe impl Lends for PyEmbeddingCache {
    fn lent(&self) -> &[f32] {
        self.cache.matrix()
    }
}

/// A read-only view of one embedding of a cache, float32 `[dim]`.
fn row_view<'py>(
    cache: &Bound<'py, PyEmbeddingCache>,
    row: usize,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let dim = cache.get().cache.dim();
    view(cache, row * dim..(row + 1) * dim)
}

#[pymethods]
impl PyEmbeddingCache {
    #[staticmethod]
    #[pyo3(signature = (path, *, strict = true, verify_checksums = true))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        strict: bool,
        verify_checksums: bool,
    ) -> PyResult<Py<Self>> {
        let options = open_options(strict, verify_checksums);
        let cache = interruptible(py, move || EmbeddingCache::open_with(path, options))?;
        let cache = Arc::new(cache.map_err(cache_error)?);
        Py::new(py, (Self { cache: Arc::clone(&cache) }, PyCache::of(cache, options)))
    }

    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        state: &str,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Self::get(slf, state)?.ok_or_else(|| PyKeyError::new_err(state.to_owned()))
    }

    fn get<'py>(
        slf: &Bound<'py, Self>,
        state: &str,
    ) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        slf.get().cache.position(state).map(|row| row_view(slf, row)).transpose()
    }

    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        states: Texts,
    ) -> PyResult<Vec<Option<Bound<'py, PyArray1<f32>>>>> {
        states.0.iter().map(|state| Self::get(slf, state)).collect()
    }

    fn matrix<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        matrix_view(slf, [slf.get().cache.len(), slf.get().cache.dim()])
    }

    fn nearest(&self, py: Python<'_>, state: &str, count: usize) -> PyResult<Vec<(String, f32)>> {
        let query = self.cache.get(state);
        let query = query.ok_or_else(|| PyKeyError::new_err(state.to_owned()))?;
        let near = py.detach(|| self.cache.nearest(query, count)).map_err(cache_error)?;
        Ok(near.iter().map(|n| (self.cache.state(n.row).to_owned(), n.cosine)).collect())
    }
}
