//! `CachedEncoder`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebm_encode::encoder::{
    CachedEncoder, CachedEncoderOptions, CachedRow, CoalescerOptions, EncoderError, RowReport,
};
use ebm_encode_embed::ObjectEncoder;
use numpy::PyArray1;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cache::PyEmbeddingCache;
use crate::errors::{argument_error, cache_error, encoding_error};
use crate::json;
use crate::texts::SomeTexts;

/// Why there is no row.
#[pyclass(frozen, name = "NoRow", module = "ebm_encode._core")]
pub(crate) struct PyNoRow {
    why: Why,
}

enum Why {
    /// The encoder says so.
    Report(RowReport),
    /// The state never got there.
    NotText(String),
}

#[pymethods]
impl PyNoRow {
    #[getter]
    fn kind(&self) -> &'static str {
        match &self.why {
            Why::NotText(_) => "not_text",
            Why::Report(RowReport::Bad { .. }) => "bad",
            Why::Report(RowReport::TooLong { .. }) => "too_long",
            Why::Report(RowReport::Error(_)) => "error",
            Why::Report(_) => "failed",
        }
    }

    #[getter]
    fn reason(&self) -> String {
        match &self.why {
            Why::Report(report) => report.to_string(),
            Why::NotText(reason) => reason.clone(),
        }
    }

    #[getter]
    fn traceback(&self) -> Option<&str> {
        match &self.why {
            Why::Report(RowReport::Error(EncoderError::Failed { trace, .. })) => trace.as_deref(),
            _ => None,
        }
    }

    fn __repr__(&self) -> String {
        format!("NoRow({}: {})", self.kind(), self.reason())
    }
}

#[pyclass(frozen, name = "CachedEncoder", module = "ebm_encode._core")]
pub(crate) struct PyCachedEncoder {
    /// Until it is finished.
    encoder: Mutex<Option<Arc<CachedEncoder>>>,
    dim: usize,
}

#[pymethods]
impl PyCachedEncoder {
    #[new]
    #[pyo3(signature = (
        encoder, cache = None, *, max_wait = 0.003, max_states = 256, max_bytes = 65_536,
        queue = 1024, memory_bytes = 1_073_741_824, append_to = None, allow_other_identity = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        encoder: &Bound<'_, PyAny>,
        cache: Option<&Bound<'_, PyEmbeddingCache>>,
        max_wait: f64,
        max_states: usize,
        max_bytes: usize,
        queue: usize,
        memory_bytes: u64,
        append_to: Option<PathBuf>,
        allow_other_identity: bool,
    ) -> PyResult<Self> {
        let max_wait = Duration::try_from_secs_f64(max_wait)
            .map_err(|error| argument_error(format!("max_wait {max_wait}: {error}")))?;
        let coalescing = CoalescerOptions { max_wait, max_states, max_bytes, queue };
        let options =
            CachedEncoderOptions { coalescing, memory_bytes, append_to, allow_other_identity };
        let object = ObjectEncoder::new(encoder)?;
        let cache = cache.map(|cache| Arc::clone(&cache.get().cache));
        let made = encoder.py().detach(|| CachedEncoder::new(object, cache, options));
        let made = made.map_err(cache_error)?;
        let dim = made.dim();
        Ok(Self { encoder: Mutex::new(Some(Arc::new(made))), dim })
    }

    #[pyo3(signature = (states, *, timeout = None))]
    fn encode<'py>(
        slf: &Bound<'py, Self>,
        states: SomeTexts,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let py = slf.py();
        let SomeTexts { texts, mut wrong } = states;
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose();
        let timeout = timeout.map_err(|error| argument_error(format!("timeout: {error}")))?;
        let encoder = slf.get().open()?;
        let answers = py.detach(|| {
            let fine = texts.iter().enumerate().filter(|(i, _)| !wrong.contains_key(i));
            let states: Vec<&str> = fine.map(|(_, text)| &**text).collect();
            match timeout {
                Some(time) => encoder.encode_within(&states, time),
                None => encoder.encode(&states),
            }
        });
        let answers = answers.map_err(|error| match error {
            EncoderError::TimedOut(_) => PyTimeoutError::new_err(error.to_string()),
            _ => encoding_error(error.to_string()),
        })?;
        let no_row = |why| Ok(Bound::new(py, PyNoRow { why })?.into_any());
        let mut answers = answers.into_iter();
        let mut rows = Vec::with_capacity(texts.len());
        for i in 0..texts.len() {
            let row = match wrong.remove(&i) {
                Some(reason) => no_row(Why::NotText(reason)),
                None => match answers.next() {
                    Some(Ok(row)) => Ok(Self::copy(slf, &row).into_any()),
                    Some(Err(report)) => no_row(Why::Report(report)),
                    None => Err(encoding_error("the encoder answered for too few states")),
                },
            };
            rows.push(row?);
        }
        Ok(rows)
    }

    fn get<'py>(
        slf: &Bound<'py, Self>,
        state: &str,
    ) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        Ok(slf.get().open()?.get(state).map(|row| Self::copy(slf, &row)))
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.open()?.statistics();
        let statistics = PyDict::new(py);
        let counts = [
            ("requests", s.requests),
            ("states", s.states),
            ("cache_hits", s.cache_hits),
            ("memory_hits", s.memory_hits),
            ("misses", s.misses),
            ("coalesced", s.coalesced),
            ("tokens", s.tokens),
            ("calls", s.encoder.calls),
            ("encoded", s.encoder.encoded),
            ("shared_batches", s.encoder.shared_batches),
        ];
        for (name, count) in counts {
            statistics.set_item(name, count)?;
        }
        for (name, time) in [("p50", s.p50), ("p95", s.p95), ("p99", s.p99)] {
            statistics.set_item(name, time.as_secs_f64())?;
        }
        Ok(statistics)
    }

    fn checkpoint(&self, py: Python<'_>) -> PyResult<()> {
        let encoder = self.open()?;
        py.detach(|| encoder.checkpoint()).map_err(cache_error)
    }

    fn commit(&self, py: Python<'_>, provenance: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
        let provenance = json::from_python(provenance)?;
        let encoder = self.open()?;
        py.detach(|| encoder.commit(provenance)).map_err(cache_error)
    }

    fn finish(&self, py: Python<'_>, provenance: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
        let provenance = json::from_python(provenance)?;
        let encoder = self.take().ok_or_else(finished)?;
        match Arc::try_unwrap(encoder) {
            Ok(encoder) => {
                let report = py.detach(|| encoder.finish(provenance)).map_err(cache_error)?;
                Ok(report.map(|report| report.rows))
            }
            Err(encoder) => {
                *self.encoder.lock().unwrap_or_else(PoisonError::into_inner) = Some(encoder);
                Err(argument_error("another thread is using the encoder"))
            }
        }
    }

    #[getter]
    const fn dim(&self) -> usize {
        self.dim
    }
}

impl Drop for PyCachedEncoder {
    /// Its thread may be at work in Python, so this one must not wait for it attached.
    fn drop(&mut self) {
        let encoder = self.take();
        let _ = Python::try_attach(|py| py.detach(|| drop(encoder)));
    }
}

fn finished() -> PyErr {
    argument_error("the encoder is finished")
}

impl PyCachedEncoder {
    fn open(&self) -> PyResult<Arc<CachedEncoder>> {
        let encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        encoder.clone().ok_or_else(finished)
    }

    fn take(&self) -> Option<Arc<CachedEncoder>> {
        self.encoder.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A row as an array of the caller's: batches and caches are read by others, too, and torch writes
    /// through arrays that are read-only.
    fn copy<'py>(slf: &Bound<'py, Self>, row: &CachedRow<'_>) -> Bound<'py, PyArray1<f32>> {
        match row {
            CachedRow::Stored(values) => PyArray1::from_slice(slf.py(), values),
            CachedRow::Encoded(row) => PyArray1::from_slice(slf.py(), row),
        }
    }
}
