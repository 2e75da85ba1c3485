//! The thread on which requests run.

use std::io;
use std::mem;
use std::process;

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime with one thread, which belongs to the process that started it.
///
/// Dropping it ends what is under way and waits for nothing, so a host may drop it within its own runtime.
#[derive(Debug)]
pub struct RequestThread {
    runtime: Option<Runtime>,
    process: u32,
}

impl RequestThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        Ok(Self { runtime: Some(runtime), process: process::id() })
    }

    /// What gives work to the thread; `None` in a process that was forked since, which has no such thread.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        let runtime = self.runtime.as_ref().filter(|_| self.process == process::id());
        runtime.map(Runtime::handle)
    }
}

impl Drop for RequestThread {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.process == process::id() {
            runtime.shutdown_background();
        } else {
            mem::forget(runtime); // its thread is not here to be ended
        }
    }
}
