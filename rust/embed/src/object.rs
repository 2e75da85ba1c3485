//! A Python object as an encoder.

use ebm_cache::Identity;
use ebm_encoder::{
    Encoder, EncoderError, EncoderResult, NoEmbedding, PromptInfo, Report, TokenDigest,
    require_room,
};
#[cfg(feature = "interpreter")]
use pyo3::exceptions::PyRuntimeError;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::array::with_array;
#[cfg(feature = "interpreter")]
use crate::attached::detached;
use crate::exception::PythonException;
#[cfg(feature = "interpreter")]
use crate::exception::attach;

/// Length of a state's prompt in tokens, and a digest of its token ids, where the encoder has one.
type Prompt = (usize, Option<u64>);

/// Index of a state, its status, whether it was cut, and why there is no embedding.
type Outcome = (usize, String, bool, String);

/// Any Python object with the `dim`, `identity` and `encode_into` of `ebm_encode.Encoder`.
///
/// Each call attaches the calling thread to the interpreter for as long as Python works. Python writes
/// into its own memory, from which embeddings are copied.
///
/// Without the feature `interpreter`, whoever waits for it must not be attached to Python meanwhile.
#[derive(Debug)]
pub struct ObjectEncoder {
    /// The object, and the function that calls it, until they are let go.
    python: Option<(Py<PyAny>, Py<PyAny>)>,
    dim: usize,
    identity: Identity,
}

impl ObjectEncoder {
    /// Takes an encoder from Python.
    ///
    /// # Errors
    /// Whatever Python raises when it is asked for its `dim` and `identity`; a `TypeError` if they
    /// are not those of an encoder.
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let dim: usize = object.getattr("dim")?.extract()?;
        let identity: String = object.getattr("identity")?.call_method0("to_json")?.extract()?;
        let identity = Identity::from_json(&identity).map_err(PyTypeError::new_err)?;
        let encode = py.import("ebm_encode.bridge")?.getattr("encode")?;
        Ok(Self { python: Some((object.clone().unbind(), encode.unbind())), dim, identity })
    }

    /// What the encoder is made of and runs on, beside its identity.
    #[cfg(feature = "interpreter")]
    pub(crate) fn describe(&self, py: Python<'_>) -> PyResult<String> {
        let (object, _) = self.python.as_ref().ok_or_else(|| PyRuntimeError::new_err("closed"))?;
        py.import("ebm_encode.bridge")?.call_method1("describe", (object,))?.extract()
    }

    /// The object in Python.
    #[cfg(feature = "interpreter")]
    pub(crate) fn object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let (object, _) = self.python.as_ref().ok_or_else(|| PyRuntimeError::new_err("closed"))?;
        Ok(object.clone_ref(py))
    }

    /// Lets go of the model while attached; otherwise it would stay until the next call of Python.
    pub(crate) fn release(&mut self) {
        if let Some(python) = self.python.take() {
            // Once the interpreter has ended there is nothing left to let go of.
            let _ = Python::try_attach(|_| drop(python));
        }
    }

    /// Leaves the model where it is.
    #[cfg(feature = "interpreter")]
    pub(crate) fn forget(&mut self) {
        std::mem::forget(self.python.take());
    }

    fn call(
        &self,
        py: Python<'_>,
        (object, encode): &(Py<PyAny>, Py<PyAny>),
        states: &[&str],
        rows: &mut [f32],
    ) -> Result<(Vec<Prompt>, Vec<Outcome>), PythonException> {
        let plain = |error: PyErr| PythonException::of(py, &error);
        let states = PyList::new(py, states).map_err(plain)?;
        with_array(py, rows, self.dim, |out| {
            encode.bind(py).call1((object, states, out))?.extract()
        })
    }
}

impl Encoder for ObjectEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        require_room(states.len(), self.dim, rows.len())?;
        if states.is_empty() {
            return Ok(Vec::new());
        }
        let python = self.python.as_ref().ok_or(EncoderError::Closed)?;
        // Not where the interpreter is ending: attaching would not return.
        let called = Python::try_attach(|py| self.call(py, python, states, rows));
        let (prompts, special) = called.ok_or(EncoderError::Closed)??;
        let fine = |(tokens, digest): Prompt| {
            Ok(PromptInfo::new(tokens).with_digest(digest.map(TokenDigest::new)))
        };
        let mut reports: Vec<Report> = prompts.into_iter().map(fine).collect();
        for (index, status, truncated, reason) in special {
            if let Some(report) = reports.get_mut(index) {
                *report = special_report(report, &status, truncated, reason);
            }
        }
        Ok(reports)
    }

    /// Without the interpreter, which the encoder needs.
    #[cfg(feature = "interpreter")]
    fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
        detached(wait);
    }
}

impl Drop for ObjectEncoder {
    fn drop(&mut self) {
        self.release();
    }
}

/// The report of a state of which there is more to say than its prompt.
fn special_report(fine: &Report, status: &str, truncated: bool, reason: String) -> Report {
    let prompt = fine.clone().unwrap_or(PromptInfo::new(0));
    match status {
        "ok" => Ok(prompt.with_truncated(truncated)),
        "bad" => Err(NoEmbedding::Bad { reason }),
        "overlong" => Err(NoEmbedding::TooLong { tokens: prompt.tokens }),
        _ => Err(NoEmbedding::Failed { reason }),
    }
}

/// Makes an encoder with the interpreter, on this thread.
#[cfg(feature = "interpreter")]
pub(crate) fn make(
    load: impl FnOnce(Python<'_>) -> PyResult<Bound<'_, PyAny>>,
) -> Result<ObjectEncoder, PythonException> {
    attach(|py| ObjectEncoder::new(&load(py)?))
}
