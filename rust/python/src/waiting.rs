//! Long work during which Python can still be interrupted.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// How often the interpreter is asked whether a signal came.
const SLICE: Duration = Duration::from_millis(100);

/// Runs something on its own thread, detached, and raises what a signal handler raises
/// meanwhile, as `KeyboardInterrupt`. The work then ends by itself, and its result is dropped; so
/// this is for work that harms nobody if it continues for a while.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = mpsc::channel();
    let run = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work());
    };
    thread::Builder::new().name("ebm-encode-wait".to_owned()).spawn(run)?;
    loop {
        let (result, back) = py.detach(move || (receiver.recv_timeout(SLICE), receiver));
        receiver = back;
        match result {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("a thread of ebm-encode ended by a panic").into());
            }
        }
    }
}
