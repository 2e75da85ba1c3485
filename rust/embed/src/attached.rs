//! Waiting in a thread that may be attached to Python.

use pyo3::ffi;
use pyo3::prelude::*;

/// Runs something that waits for Python to work in another thread.
///
/// A thread that is attached to the interpreter lets go of it meanwhile: the other thread needs it, and
/// the two would wait for each other without end. One that is not attached is not attached for this,
/// since that may take long.
pub(crate) fn detached<T: Send>(wait: impl FnOnce() -> T + Send) -> T {
    if is_attached() {
        return Python::attach(|py| py.detach(wait));
    }
    wait()
}

/// Whether this thread is attached to the interpreter.
fn is_attached() -> bool {
    // SAFETY: both may be called at any time, by any thread, and only read.
    #[expect(unsafe_code, reason = "PyO3 has no safe face of it")]
    unsafe {
        ffi::Py_IsInitialized() != 0 && ffi::PyGILState_Check() != 0
    }
}
