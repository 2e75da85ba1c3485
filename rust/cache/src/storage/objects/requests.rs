//! Requests to object stores: asynchronous calls that any thread may wait for.
//!
//! They run on threads of this crate, so that they can be made from any thread, one of an asynchronous
//! host's included.

use std::io;
use std::process;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::runtime::{Builder, Runtime};

use crate::format::error::{CacheError, CacheResult};

/// Waits for a request; any thread may.
pub(super) fn wait<T: Send + 'static>(
    request: impl Future<Output = T> + Send + 'static,
) -> CacheResult<T> {
    let failed = |why: String| CacheError::Argument(format!("object stores: {why}"));
    let runtime = runtime().map_err(|error| failed(error.to_string()))?;
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime.spawn(async move { sender.send(request.await) });
    receiver.recv().map_err(|_| failed("the request was dropped".to_owned()))
}

/// The threads of this process. A fork takes none along, so a forked process makes its own.
fn runtime() -> io::Result<Arc<Runtime>> {
    static RUNTIME: Mutex<Option<(u32, Arc<Runtime>)>> = Mutex::new(None);
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    match &*runtime {
        Some((process, runtime)) if *process == process::id() => Ok(Arc::clone(runtime)),
        _ => {
            let mut threads = Builder::new_multi_thread();
            threads.worker_threads(2).thread_name("ebm-encode-objects").enable_all();
            let new = Arc::new(threads.build()?);
            // That of the process before is forgotten, not ended: it has no threads here.
            if let Some(former) = runtime.replace((process::id(), Arc::clone(&new))) {
                std::mem::forget(former);
            }
            Ok(new)
        }
    }
}
