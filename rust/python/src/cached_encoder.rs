//! `CachedEncoder`.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use ebm_cache::Cache;
use ebm_embed::ObjectEncoder;
use ebm_encoder::{
    CachedAnswer, CachedEncoder, CachedEncoderOptions, CoalescerOptions, EncoderError, NoEmbedding,
    TokenDigest,
};
use numpy::PyArray1;
use pyo3::exceptions::{PyTimeoutError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cache::PyCache;
use crate::errors::{argument_error, cache_error, encoding_error};
use crate::json;
use crate::texts::SomeTexts;
use crate::waiting::interruptible;

/// A cache in front of an encoder, of either kind.
fn front(cache: &Bound<'_, PyAny>) -> PyResult<Cache> {
    if let Ok(cache) = cache.cast::<PyCache>() {
        return Ok(cache.get().cache.clone());
    }
    let kind = cache.get_type().name()?;
    let message = format!(
        "`cache` is a {kind}, expected an EmbeddingCache or a MappedCache\n\
         hint: open_cache(path) opens one"
    );
    Err(PyTypeError::new_err(message))
}

/// The encoder of an object, until it is finished.
type Slot = Arc<Mutex<Option<Arc<CachedEncoder>>>>;

/// The encoder of an object, and the process that made it.
type Made = (u32, Weak<Mutex<Option<Arc<CachedEncoder>>>>);

/// The encoders of all objects: those that are still open at the end of their process are closed then.
static OPEN: Mutex<Vec<Made>> = Mutex::new(Vec::new());

/// Whether the interpreter is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// How often the end looks whether callers have left.
const LOOK: Duration = Duration::from_millis(5);

/// Why there is no embedding.
#[pyclass(frozen, name = "NoEmbedding", module = "ebm_encode._core")]
pub(crate) struct PyNoEmbedding {
    why: Why,
}

enum Why {
    /// The encoder says so.
    Report(NoEmbedding),
    /// The state never got there.
    NotText(String),
}

#[pymethods]
impl PyNoEmbedding {
    #[getter]
    fn kind(&self) -> &'static str {
        match &self.why {
            Why::NotText(_) => "not_text",
            Why::Report(NoEmbedding::Bad { .. }) => "bad",
            Why::Report(NoEmbedding::TooLong { .. }) => "too_long",
            Why::Report(NoEmbedding::Encoder(_)) => "error",
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
            Why::Report(NoEmbedding::Encoder(EncoderError::Failed { trace, .. })) => {
                trace.as_deref()
            }
            _ => None,
        }
    }

    fn __repr__(&self) -> String {
        format!("NoEmbedding({}: {})", self.kind(), self.reason())
    }
}

#[pyclass(frozen, name = "CachedEncoder", module = "ebm_encode._core")]
pub(crate) struct PyCachedEncoder {
    encoder: Slot,
    dim: usize,
}

#[pymethods]
impl PyCachedEncoder {
    #[new]
    #[pyo3(signature = (
        encoder, cache = None, *, max_wait = 0.003, max_states = 256, max_bytes = 65_536,
        queue = 1024, memory_bytes = 1_073_741_824, append_to = None, checkpoint_interval = 60.0,
        allow_other_identity = false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn new(
        encoder: &Bound<'_, PyAny>,
        cache: Option<&Bound<'_, PyAny>>,
        max_wait: f64,
        max_states: usize,
        max_bytes: usize,
        queue: usize,
        memory_bytes: u64,
        append_to: Option<PathBuf>,
        checkpoint_interval: f64,
        allow_other_identity: bool,
    ) -> PyResult<Self> {
        let max_wait = seconds("max_wait", max_wait)?;
        let coalescing = CoalescerOptions::default()
            .with_max_wait(max_wait)
            .with_max_states(max_states)
            .with_max_bytes(max_bytes)
            .with_queue(queue);
        let mut options = CachedEncoderOptions::default()
            .with_coalescing(coalescing)
            .with_memory_bytes(memory_bytes)
            .with_checkpoint_interval(seconds("checkpoint_interval", checkpoint_interval)?)
            .with_allow_other_identity(allow_other_identity);
        options.append_to = append_to;
        let object = ObjectEncoder::new(encoder)?;
        let cache = cache.map(front).transpose()?;
        let made = interruptible(encoder.py(), || CachedEncoder::new(object, cache, options))?;
        let made = Arc::new(made.map_err(cache_error)?);
        let dim = made.dim();
        let encoder = Arc::new(Mutex::new(Some(made)));
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, slot)| slot.strong_count() > 0);
        open.push((process::id(), Arc::downgrade(&encoder)));
        Ok(Self { encoder, dim })
    }

    #[pyo3(signature = (states, *, timeout = None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        states: SomeTexts,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let reported = report_each(py, &*self.open()?, states, timeout)?;
        Ok(reported.into_iter().map(|(row, ..)| row).collect())
    }

    #[pyo3(signature = (states, *, timeout = None))]
    fn encode_reported<'py>(
        &self,
        py: Python<'py>,
        states: SomeTexts,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Reported<'py>>> {
        report_each(py, &*self.open()?, states, timeout)
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        state: &str,
    ) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        let encoder = self.open()?;
        // Detached: a mapped cache may have to read and check a page.
        let found = py.detach(|| encoder.get(state));
        Ok(found.map(|embedding| PyArray1::from_slice(py, &embedding)))
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
            ("truncated", s.truncated),
            ("not_appended", s.not_appended),
            ("bad", s.encoder.bad),
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
        interruptible(py, move || encoder.checkpoint())?.map_err(cache_error)
    }

    fn commit(&self, py: Python<'_>, provenance: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
        let provenance = json::from_python(provenance)?;
        let encoder = self.open()?;
        interruptible(py, move || encoder.commit(provenance))?.map_err(cache_error)
    }

    fn finish(&self, py: Python<'_>, provenance: &Bound<'_, PyDict>) -> PyResult<Option<u64>> {
        let provenance = json::from_python(provenance)?;
        let encoder = take(&self.encoder).ok_or_else(finished)?;
        match Arc::try_unwrap(encoder) {
            Ok(encoder) => {
                let report = interruptible(py, move || encoder.finish(provenance))?;
                Ok(report.map_err(cache_error)?.map(|report| report.rows))
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
        let encoder = take(&self.encoder);
        let _ = Python::try_attach(|py| py.detach(|| drop(encoder)));
    }
}

impl PyCachedEncoder {
    fn open(&self) -> PyResult<Arc<CachedEncoder>> {
        let encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        encoder.clone().ok_or_else(finished)
    }
}

/// An embedding or a `NoEmbedding`, the length of its prompt, whether it was cut, and its token digest.
type Reported<'py> = (Bound<'py, PyAny>, Option<usize>, Option<bool>, Option<u64>);

fn take(encoder: &Slot) -> Option<Arc<CachedEncoder>> {
    encoder.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn finished() -> PyErr {
    argument_error("the encoder is finished")
}

fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    let wrong = |error| argument_error(format!("{name} {value}: {error}"));
    Duration::try_from_secs_f64(value).map_err(wrong)
}

/// What an encoder answers for each text, and why there is no embedding of what is no text.
fn report_each<'py>(
    py: Python<'py>,
    encoder: &CachedEncoder,
    states: SomeTexts,
    timeout: Option<f64>,
) -> PyResult<Vec<Reported<'py>>> {
    let SomeTexts { texts, mut wrong } = states;
    let fine = texts.iter().enumerate().filter(|(i, _)| !wrong.contains_key(i));
    let fine: Vec<&str> = fine.map(|(_, text)| &**text).collect();
    let mut answers = ask(py, encoder, &fine, timeout)?.into_iter();
    let reported = (0..texts.len()).map(|i| {
        if let Some(reason) = wrong.remove(&i) {
            let none = Bound::new(py, PyNoEmbedding { why: Why::NotText(reason) })?.into_any();
            return Ok((none, None, None, None));
        }
        let too_few = || encoding_error("the encoder answered for too few states");
        let answer = answers.next().ok_or_else(too_few)?;
        let prompt = answer.as_ref().ok().and_then(|embedding| embedding.prompt()).copied();
        let tokens = match &answer {
            Err(NoEmbedding::TooLong { tokens }) => Some(*tokens),
            _ => prompt.map(|prompt| prompt.tokens),
        };
        let truncated = prompt.map(|prompt| prompt.truncated);
        let digest = prompt.and_then(|prompt| prompt.digest).map(TokenDigest::value);
        Ok((row_or_reason(py, answer)?, tokens, truncated, digest))
    });
    reported.collect()
}

/// Asks an encoder, detached; what a signal handler raises meanwhile ends the wait.
fn ask<'e>(
    py: Python<'_>,
    encoder: &'e CachedEncoder,
    states: &[&str],
    timeout: Option<f64>,
) -> PyResult<Vec<CachedAnswer<'e>>> {
    let timeout = timeout.map(|time| seconds("timeout", time)).transpose()?;
    let mut raised = None;
    let answers = py.detach(|| {
        let mut stop = || {
            raised = Python::attach(|py| py.check_signals().err());
            raised.is_some() || ENDING.load(Ordering::Relaxed)
        };
        encoder.encode_unless(states, timeout, &mut stop)
    });
    answers.map_err(|error| match (error, raised) {
        (EncoderError::Interrupted, Some(raised)) => raised,
        (error @ EncoderError::TimedOut(_), _) => PyTimeoutError::new_err(error.to_string()),
        (error, _) => encoding_error(error.to_string()),
    })
}

/// An embedding as the caller's own array: what one caller writes into it, no other sees.
fn row_or_reason<'py>(py: Python<'py>, answer: CachedAnswer<'_>) -> PyResult<Bound<'py, PyAny>> {
    match answer {
        Ok(row) => Ok(PyArray1::from_slice(py, &row).into_any()),
        Err(report) => Ok(Bound::new(py, PyNoEmbedding { why: Why::Report(report) })?.into_any()),
    }
}

/// Has the encoders that are open at the end of the interpreter closed while it still runs. A thread
/// that asks for it afterwards is ended by it, through frames of Rust, which ends the process.
pub(crate) fn close_at_exit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let close = wrap_pyfunction!(close_encoders, module)?;
    module.py().import("atexit")?.call_method1("register", (close,))?;
    Ok(())
}

#[pyfunction(name = "_close_encoders")]
fn close_encoders(py: Python<'_>) {
    let slots = std::mem::take(&mut *OPEN.lock().unwrap_or_else(PoisonError::into_inner));
    ENDING.store(true, Ordering::Relaxed); // callers stop waiting
    let own = slots.iter().filter(|(made_by, _)| *made_by == process::id());
    py.detach(|| {
        for encoder in own.filter_map(|(_, slot)| take(&slot.upgrade()?)) {
            close(encoder);
        }
    });
}

/// Saves what was encoded, and ends the encoder's threads once no caller is left in it.
fn close(mut encoder: Arc<CachedEncoder>) {
    if let Err(error) = encoder.checkpoint() {
        let message = format!("rows of a CachedEncoder could not be saved: {error}");
        Python::attach(|py| warn(py, &message));
    }
    loop {
        match Arc::try_unwrap(encoder) {
            Ok(last) => return drop(last),
            Err(shared) => encoder = shared,
        }
        thread::sleep(LOOK);
    }
}

fn warn(py: Python<'_>, message: &str) {
    let logger = py.import("logging").and_then(|l| l.call_method1("getLogger", ("ebm_encode",)));
    // Nobody may listen at the end, and there is nobody else to be told.
    let _ = logger.and_then(|logger| logger.call_method1("error", (message,)));
}
