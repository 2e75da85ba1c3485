//! `CacheWriter`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ebm_cache::{CacheWriter, FinishReport, OutputLock, StateKey, Verdict, WriterOptions};
use numpy::{PyArray1, PyArray2, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyDict;

use crate::checks::{PyBadRow, matrix};
use crate::errors::{argument_error, cache_error};
use crate::identity::PyIdentity;
use crate::json;
use crate::waiting::interruptible;

/// A writer's life: locked, open, closed.
enum Stage {
    Locked(Box<OutputLock>),
    Open(Box<CacheWriter>),
    Closed,
}

/// States and why their embeddings are bad.
type BadStates = Vec<(String, PyBadRow)>;
/// Number of rows, skipped embeddings, and whether the output was written.
pub(crate) type Finished = (u64, BadStates, bool);

/// What a writer reports in the end: of skipped embeddings, those of states that have no other.
pub(crate) fn finished(report: FinishReport) -> Finished {
    let left_out = report.left_out.into_iter().map(|(state, reason)| (state, reason.into()));
    (report.rows, left_out.collect(), report.written)
}

#[pyfunction]
pub(crate) fn compact(py: Python<'_>, folder: PathBuf) -> PyResult<Finished> {
    let mut report = py.detach(|| ebm_cache::compact(folder)).map_err(cache_error)?;
    let replaced = std::mem::take(&mut report.replaced);
    report.left_out.extend(replaced);
    Ok(finished(report))
}

#[pyclass(frozen, name = "CacheWriter", module = "ebm_encode._core")]
pub(crate) struct PyCacheWriter {
    stage: Mutex<Stage>,
}

impl PyCacheWriter {
    /// Runs a step on the open writer, away from the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnOnce(&mut CacheWriter) -> T + Send,
    ) -> PyResult<T> {
        let done =
            py.detach(|| match &mut *self.stage.lock().unwrap_or_else(PoisonError::into_inner) {
                Stage::Open(writer) => Some(step(writer)),
                Stage::Locked(_) | Stage::Closed => None,
            });
        done.ok_or_else(|| argument_error("the writer is not open"))
    }

    fn take(&self) -> Stage {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut stage, Stage::Closed)
    }

    /// The open writer, which is closed from here on; one that is not open stays what it is.
    fn take_open(&self) -> PyResult<CacheWriter> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *stage, Stage::Closed) {
            Stage::Open(writer) => Ok(*writer),
            other => {
                *stage = other;
                Err(argument_error("the writer is not open"))
            }
        }
    }

    /// The lock of a writer that was not opened yet; one that was stays open.
    fn take_lock(&self) -> PyResult<OutputLock> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *stage, Stage::Closed) {
            Stage::Locked(lock) => Ok(*lock),
            other => {
                let why = match &other {
                    Stage::Open(_) => "the writer is open already",
                    Stage::Locked(_) | Stage::Closed => "the writer is closed",
                };
                *stage = other;
                Err(argument_error(why))
            }
        }
    }
}

#[pymethods]
impl PyCacheWriter {
    #[new]
    fn new(py: Python<'_>, output: PathBuf) -> PyResult<Self> {
        let lock = py.detach(|| OutputLock::acquire(output)).map_err(cache_error)?;
        Ok(Self { stage: Mutex::new(Stage::Locked(Box::new(lock))) })
    }

    #[pyo3(signature = (
        identity, dim, *, checkpoint_rows = 2000, checkpoint_seconds = 60.0, overwrite = false
    ))]
    fn open(
        &self,
        py: Python<'_>,
        identity: &PyIdentity,
        dim: usize,
        checkpoint_rows: usize,
        checkpoint_seconds: f64,
        overwrite: bool,
    ) -> PyResult<()> {
        let checkpoint_interval = Duration::try_from_secs_f64(checkpoint_seconds)
            .map_err(|error| argument_error(format!("checkpoint_seconds: {error}")))?;
        let lock = py.detach(|| self.take_lock())?;
        let options = WriterOptions::default()
            .with_checkpoint_rows(checkpoint_rows)
            .with_checkpoint_interval(checkpoint_interval)
            .with_overwrite(overwrite);
        let identity = identity.identity.clone();
        let open = move || lock.open(identity, dim, options);
        let writer = interruptible(py, open)?.map_err(cache_error)?;
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Stage::Open(Box::new(writer));
        Ok(())
    }

    fn append(
        &self,
        py: Python<'_>,
        states: Vec<PyBackedStr>,
        rows: PyReadonlyArray2<'_, f32>,
    ) -> PyResult<Vec<Option<PyBadRow>>> {
        let rows = matrix(&rows)?;
        let states: Vec<&str> = states.iter().map(|state| &**state).collect();
        let verdicts =
            self.with(py, |writer| writer.append(&states, rows))?.map_err(cache_error)?;
        let verdicts = verdicts.into_iter().map(|verdict| match verdict {
            Verdict::Bad(reason) => Some(PyBadRow::from(reason)),
            _ => None,
        });
        Ok(verdicts.collect())
    }

    #[pyo3(signature = (cache, wanted, *, made_by = None))]
    fn adopt(
        &self,
        py: Python<'_>,
        cache: PathBuf,
        wanted: Vec<PyBackedStr>,
        made_by: Option<&PyIdentity>,
    ) -> PyResult<u64> {
        let wanted: Vec<&str> = wanted.iter().map(|state| &**state).collect();
        let made_by = made_by.map(|identity| &identity.identity);
        let adopt = |writer: &mut CacheWriter| match made_by {
            Some(identity) => writer.adopt_from(cache, &wanted, identity),
            None => writer.adopt(cache, &wanted),
        };
        self.with(py, adopt)?.map_err(cache_error)
    }

    fn allow_equal(&self, py: Python<'_>, left: &str, right: &str) -> PyResult<()> {
        self.with(py, |writer| writer.allow_equal(left, right))
    }

    fn retract(&self, py: Python<'_>, state: &str) -> PyResult<bool> {
        self.with(py, |writer| writer.retract(state))
    }

    fn contains_many(&self, py: Python<'_>, states: Vec<PyBackedStr>) -> PyResult<Vec<bool>> {
        self.with(py, |writer| states.iter().map(|state| writer.contains(state)).collect())
    }

    fn former_many(&self, py: Python<'_>, states: Vec<PyBackedStr>) -> PyResult<Vec<bool>> {
        self.with(py, |writer| states.iter().map(|state| writer.is_former(state)).collect())
    }

    fn stored<'py>(
        &self,
        py: Python<'py>,
        key: &str,
    ) -> PyResult<Option<(String, Bound<'py, PyArray1<f32>>)>> {
        let key = StateKey::from_hex(key)
            .ok_or_else(|| argument_error(format!("{key:?} is not a state key")))?;
        let found = self.with(py, |writer| writer.stored(key))?.map_err(cache_error)?;
        Ok(found.map(|(state, row)| (state, PyArray1::from_vec(py, row))))
    }

    fn new_rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let rows = self.with(py, |writer| writer.new_rows())?;
        Ok(PyArray1::from_vec(py, rows))
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        numbers: Vec<u64>,
    ) -> PyResult<(Vec<String>, Bound<'py, PyArray2<f32>>)> {
        let found = self.with(py, |writer| writer.read(&numbers))?.map_err(cache_error)?;
        let (states, rows): (Vec<String>, Vec<Vec<f32>>) = found.into_iter().unzip();
        let rows =
            PyArray2::from_vec2(py, &rows).map_err(|error| argument_error(error.to_string()))?;
        Ok((states, rows))
    }

    fn norm_outliers(&self, py: Python<'_>) -> PyResult<BadStates> {
        let found = self.with(py, |writer| writer.norm_outliers())?.map_err(cache_error)?;
        Ok(found.into_iter().map(|(state, reason)| (state, reason.into())).collect())
    }

    fn left_out(&self, py: Python<'_>) -> PyResult<BadStates> {
        let found = self.with(py, |writer| writer.left_out().to_vec())?;
        Ok(found.into_iter().map(|(state, reason)| (state, reason.into())).collect())
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, CacheWriter::checkpoint)?.map_err(cache_error)
    }

    fn commit(&self, py: Python<'_>, provenance: &Bound<'_, PyDict>) -> PyResult<u64> {
        let provenance = json::from_python(provenance)?;
        self.with(py, |writer| writer.commit(provenance))?.map_err(cache_error)
    }

    fn finish<'py>(&self, py: Python<'py>, provenance: &Bound<'py, PyDict>) -> PyResult<Finished> {
        let provenance = json::from_python(provenance)?;
        let writer = py.detach(|| self.take_open())?;
        Ok(finished(py.detach(|| writer.finish(provenance)).map_err(cache_error)?))
    }

    fn reject(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        let writer = py.detach(|| self.take_open())?;
        py.detach(|| writer.reject(reason)).map_err(cache_error)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |writer| writer.len())
    }

    fn discarded(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |writer| writer.discarded().to_vec())
    }

    fn work_folder(&self, py: Python<'_>) -> PyResult<OsString> {
        self.with(py, |writer| writer.work_folder().into())
    }
}
