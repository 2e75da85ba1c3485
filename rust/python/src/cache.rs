//! `EmbeddingCache`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use ebm_cache::{CacheResult, Checks, Checksums, EmbeddingCache, OpenOptions, Run};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::{argument_error, cache_error};
use crate::identity::PyIdentity;
use crate::json;
use crate::texts::Texts;
use crate::views::{Lends, matrix_view, view};
use crate::waiting::interruptible;

#[pyclass(frozen, name = "EmbeddingCache", module = "ebm_encode._core")]
pub(crate) struct PyEmbeddingCache {
    pub(crate) cache: Arc<EmbeddingCache>,
    options: OpenOptions,
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
    fn open(py: Python<'_>, path: PathBuf, strict: bool, verify_checksums: bool) -> PyResult<Self> {
        let options = open_options(strict, verify_checksums);
        let cache = interruptible(py, move || EmbeddingCache::open_with(path, options))?;
        Ok(Self { cache: Arc::new(cache.map_err(cache_error)?), options })
    }

    fn __len__(&self) -> usize {
        self.cache.len()
    }

    fn __contains__(&self, state: &str) -> bool {
        self.cache.position(state).is_some()
    }

    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        state: &str,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let row = slf.get().cache.position(state);
        let row = row.ok_or_else(|| PyKeyError::new_err(state.to_owned()))?;
        row_view(slf, row)
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

    fn positions<'py>(
        &self,
        py: Python<'py>,
        states: Texts,
    ) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows = py.detach(|| self.cache.positions(&states.0)).map_err(cache_error)?;
        Ok(positions(py, rows))
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
        PyList::new(py, self.cache.iter().map(|(state, _)| state))
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
        let (path, rows, dim) = (self.cache.path().display(), self.cache.len(), self.cache.dim());
        format!("EmbeddingCache({path}, {rows} rows of {dim})")
    }
}

/// The runs that made a cache's embeddings, as dicts.
pub(crate) fn runs<'py>(py: Python<'py>, runs: &[Run]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let value =
        |run: &Run| serde_json::to_value(run).map_err(|error| argument_error(error.to_string()));
    runs.iter().map(|run| json::to_python(py, &value(run)?)).collect()
}

/// One of the views of a mapping that `collections.abc` has.
pub(crate) fn view_of<'py>(cache: &Bound<'py, PyAny>, kind: &str) -> PyResult<Bound<'py, PyAny>> {
    cache.py().import("collections.abc")?.call_method1(kind, (cache,))
}

/// How pickle is to make the cache again: by opening it, with the same options.
pub(crate) fn reduce<'py>(
    cache: &Bound<'py, PyAny>,
    options: OpenOptions,
) -> PyResult<Bound<'py, PyAny>> {
    let again = PyDict::new(cache.py());
    again.set_item("strict", options.checks == Checks::Strict)?;
    again.set_item("verify_checksums", options.checksums == Checksums::Verify)?;
    let opening = cache.py().import("ebm_encode.opening")?;
    opening.call_method1("reduce_cache", (cache, again))
}

/// What opening a cache checks.
pub(crate) fn open_options(strict: bool, verify_checksums: bool) -> OpenOptions {
    OpenOptions::default()
        .with_checks(if strict { Checks::Strict } else { Checks::Lenient })
        .with_checksums(if verify_checksums { Checksums::Verify } else { Checksums::Trust })
}

/// Writes `count` embeddings into the caller's array, or a new one.
pub(crate) fn fill<'py>(
    py: Python<'py>,
    [count, dim]: [usize; 2],
    out: Option<Bound<'py, PyArray2<f32>>>,
    write: impl FnOnce(&mut [f32]) -> CacheResult<()> + Send,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let shape = [count, dim];
    let out = out.unwrap_or_else(|| PyArray2::zeros(py, shape, false));
    if out.shape() != shape {
        let found = out.shape();
        return Err(argument_error(format!("out is {found:?}, expected {shape:?}")));
    }
    // The library lends the memory of a matrix in Fortran's order as well, column by column.
    if !out.is_c_contiguous() {
        return Err(argument_error("out must be C-contiguous"));
    }
    {
        let mut rows = out.try_readwrite().map_err(|_| {
            argument_error("out cannot be written: read-only, or in use by another call")
        })?;
        let rows = rows.as_slice_mut().map_err(|_| argument_error("out must be C-contiguous"))?;
        py.detach(|| write(rows)).map_err(cache_error)?;
    }
    Ok(out)
}

/// Row numbers as Python has them.
pub(crate) fn numbers(rows: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let index = |row: &i64| {
        usize::try_from(*row).map_err(|_| argument_error(format!("row {row}: is negative")))
    };
    rows.as_array().iter().map(index).collect()
}

/// Row numbers for Python.
#[expect(clippy::cast_possible_wrap, reason = "row numbers fit: rows have more than one byte")]
pub(crate) fn positions(py: Python<'_>, rows: Vec<usize>) -> Bound<'_, PyArray1<i64>> {
    PyArray1::from_iter(py, rows.into_iter().map(|row| row as i64))
}
