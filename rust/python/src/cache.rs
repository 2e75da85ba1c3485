//! `Cache`: what both kinds of opened caches have.

use std::ffi::OsString;

use ebm_cache::{Cache, CacheResult, Checks, Checksums, OpenOptions, Run};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::{argument_error, cache_error};
use crate::identity::PyIdentity;
use crate::json;
use crate::texts::Texts;

#[pyclass(frozen, subclass, name = "Cache", module = "ebm_encode._core")]
pub(crate) struct PyCache {
    pub(crate) cache: Cache,
    options: OpenOptions,
}

impl PyCache {
    /// The part of an opened cache that its kind does not matter for.
    pub(crate) fn of(cache: impl Into<Cache>, options: OpenOptions) -> Self {
        Self { cache: cache.into(), options }
    }
}

#[pymethods]
impl PyCache {
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
        // Detached: a mapped cache may have to read and check a page.
        let embedding = py.detach(|| self.cache.get(state)).map_err(cache_error)?;
        Ok(embedding.map(|values| PyArray1::from_slice(py, &values)))
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
        view_of(slf, "KeysView")
    }

    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view_of(slf, "ValuesView")
    }

    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        view_of(slf, "ItemsView")
    }

    /// Pickled, it is opened again, with the same options.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let again = PyDict::new(slf.py());
        let options = slf.get().options;
        again.set_item("strict", options.checks == Checks::Strict)?;
        again.set_item("verify_checksums", options.checksums == Checksums::Verify)?;
        let opening = slf.py().import("ebm_encode.opening")?;
        opening.call_method1("reduce_cache", (slf, again))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let (kind, cache) = (slf.get_type().name()?, &slf.get().cache);
        let (path, rows, dim) = (cache.path().display(), cache.len(), cache.dim());
        Ok(format!("{kind}({path}, {rows} rows of {dim})"))
    }
}

/// The runs that made a cache's embeddings, as dicts.
fn runs<'py>(py: Python<'py>, runs: &[Run]) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let value =
        |run: &Run| serde_json::to_value(run).map_err(|error| argument_error(error.to_string()));
    runs.iter().map(|run| json::to_python(py, &value(run)?)).collect()
}

/// One of the views of a mapping that `collections.abc` has.
fn view_of<'py>(cache: &Bound<'py, PyCache>, kind: &str) -> PyResult<Bound<'py, PyAny>> {
    cache.py().import("collections.abc")?.call_method1(kind, (cache,))
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
fn numbers(rows: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<usize>> {
    let index = |row: &i64| {
        usize::try_from(*row).map_err(|_| argument_error(format!("row {row}: is negative")))
    };
    rows.as_array().iter().map(index).collect()
}

/// Row numbers for Python.
#[expect(clippy::cast_possible_wrap, reason = "row numbers fit: rows have more than one byte")]
fn positions(py: Python<'_>, rows: Vec<usize>) -> Bound<'_, PyArray1<i64>> {
    PyArray1::from_iter(py, rows.into_iter().map(|row| row as i64))
}
