//! The Python encoder on its own thread.

use std::hint;
use std::mem;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ebm_cache::Identity;
use ebm_encoder::{Encoder, EncoderError, EncoderResult, Report};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::attached::detached;
use crate::error::EmbedError;
use crate::exception::attach;
use crate::interpreter::Interpreter;
use crate::log;
use crate::object::{ObjectEncoder, make};
use crate::options::PythonEncoderOptions;

/// How long a caller looks for its embeddings before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// As much as a program's first thread has, for C code that recurses; Rust's threads have 2 MiB.
pub(crate) const STACK: usize = 8 << 20;

/// A model in the Python package `ebm_encode`, behind one thread that does all Python work.
///
/// A call writes into the caller's memory and returns when that is done, so nothing is written for
/// a caller that has stopped waiting. Calls of several threads wait for each other; put a
/// [`Coalescer`](ebm_encoder::Coalescer) or a
/// [`CachedEncoder`](ebm_encoder::CachedEncoder) in front to merge them.
///
/// A thread that is attached to Python may load, call and drop it, too: it is detached while it waits.
/// In a process that was forked since, calls are refused.
#[derive(Debug)]
pub struct PythonEncoder {
    thread: PythonThread,
    encoder: ObjectEncoder,
    python: &'static Interpreter,
    time: PythonTime,
}

/// The thread, for as long as this lives; dropping it waits for the thread's end.
///
/// What torch and Python keep for a thread is given back when it ends. Were it still at that while
/// the process ends, libraries would clean up under its hands.
#[derive(Debug)]
struct PythonThread {
    pool: Option<ThreadPool>,
    handle: Option<JoinHandle<()>>,
    /// The process in which the thread runs.
    process: u32,
}

impl PythonThread {
    fn start() -> Result<Self, EmbedError> {
        let mut handle = None;
        let pool = ThreadPoolBuilder::new()
            .num_threads(1)
            .spawn_handler(|worker| {
                // Known to Python for its whole life, which costs less than to be introduced again
                // for each call; and detached for as long as it waits.
                let live = || Python::attach(|py| py.detach(|| worker.run()));
                let builder = thread::Builder::new().name("ebm-encode-python".to_owned());
                handle = Some(builder.stack_size(STACK).spawn(live)?);
                Ok(())
            })
            .build()
            .map_err(|error| EmbedError::Thread(error.to_string()))?;
        Ok(Self { pool: Some(pool), handle, process: process::id() })
    }

    /// The thread, if it runs in this process.
    fn pool(&self) -> EncoderResult<&ThreadPool> {
        if self.process != process::id() {
            return Err(EncoderError::Forked);
        }
        self.pool.as_ref().ok_or(EncoderError::Closed)
    }

    /// Runs something there, and waits for it without the interpreter.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> EncoderResult<T> {
        let pool = self.pool()?;
        Ok(detached(|| pool.install(work)))
    }
}

impl Drop for PythonThread {
    fn drop(&mut self) {
        let (pool, handle) = (self.pool.take(), self.handle.take());
        if self.process != process::id() {
            mem::forget((pool, handle)); // the thread is not here to be ended
            return;
        }
        detached(|| {
            drop(pool); // which tells the thread to end
            // A panic there has been reported by then.
            if let Some(Err(_)) = handle.map(JoinHandle::join) {
                tracing::warn!("the thread of Python ended by a panic");
            }
        });
    }
}

/// How long Python has worked, for whoever asks while the encoder is at work elsewhere.
#[derive(Debug, Clone, Default)]
pub struct PythonTime(Arc<AtomicU64>);

impl PythonTime {
    /// The time so far.
    #[must_use]
    pub fn so_far(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl PythonEncoder {
    /// Loads a model.
    ///
    /// # Errors
    /// [`EmbedError::Python`] with what Python raises, and [`EmbedError::Thread`].
    pub fn load(
        python: &'static Interpreter,
        options: &PythonEncoderOptions,
    ) -> Result<Self, EmbedError> {
        // Also the start of the thread attaches it.
        let thread = detached(PythonThread::start)?;
        let loaded = thread.run(|| {
            make(|py| {
                let arguments = (log::forward(py)?, options.threads, options.arguments(py)?);
                py.import("ebm_encode.bridge")?.call_method1("load", arguments)
            })
        });
        let encoder = loaded.map_err(|error| no_thread(&error))??;
        Ok(Self { thread, encoder, python, time: PythonTime::default() })
    }

    /// The interpreter in which it runs.
    #[must_use]
    pub const fn interpreter(&self) -> &'static Interpreter {
        self.python
    }

    /// What the encoder is made of and runs on, beside its identity: the engine and why it was
    /// chosen, the device, versions.
    ///
    /// # Errors
    /// What Python raises.
    pub fn describe(&self) -> Result<serde_json::Value, EmbedError> {
        let described = self.thread.run(|| attach(|py| self.encoder.describe(py)));
        let described = described.map_err(|error| no_thread(&error))??;
        serde_json::from_str(&described).map_err(|error| EmbedError::Unexpected(error.to_string()))
    }

    /// The encoder in Python, for a policy that shares its weights.
    pub(crate) fn object(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.encoder.object(py)
    }

    /// A clock of the time that is spent in Python.
    #[must_use]
    pub fn time(&self) -> PythonTime {
        self.time.clone()
    }
}

impl Encoder for PythonEncoder {
    fn dim(&self) -> usize {
        self.encoder.dim()
    }

    fn identity(&self) -> &Identity {
        self.encoder.identity()
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        let pool = self.thread.pool()?;
        let mut result = Err(EncoderError::Closed);
        detached(|| {
            let done = AtomicBool::new(false);
            pool.in_place_scope(|scope| {
                scope.spawn(|_| {
                    let start = Instant::now();
                    result = self.encoder.encode_into(states, rows);
                    self.time.add(start.elapsed());
                    done.store(true, Ordering::Release);
                });
                spin_until(&done);
            }); // which waits for what is not done yet
        });
        result
    }

    fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
        detached(wait);
    }
}

fn no_thread(error: &EncoderError) -> EmbedError {
    EmbedError::Thread(error.to_string())
}

/// Looks again and again for a short while: to sleep and be woken takes longer than a short call.
fn spin_until(done: &AtomicBool) {
    let start = Instant::now();
    while !done.load(Ordering::Acquire) && start.elapsed() < SPIN {
        hint::spin_loop();
    }
}

impl Drop for PythonEncoder {
    fn drop(&mut self) {
        // In a forked process the model stays: its memory is shared, and its locks may be held.
        if self.thread.run(|| self.encoder.release()).is_err() {
            self.encoder.forget();
            return;
        }
        if let Err(error) = self.python.flush() {
            tracing::warn!(%error, "what Python has buffered may be lost");
        }
    }
}
