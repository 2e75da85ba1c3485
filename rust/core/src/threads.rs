//! Work that is spread over the cores, in a process that may have been forked.
//!
//! A fork takes one thread along. Work given to the others would be waited for without end, so a
//! forked process, a worker of a `DataLoader` for example, gets threads of its own.

use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

static FIRST: OnceLock<u32> = OnceLock::new();

/// Notes that the threads of the whole process are this process's. Call it before anything forks;
/// else the first work that is spread does.
pub fn note_process() {
    FIRST.get_or_init(process::id);
}

/// Whether this process was forked from one whose threads stayed there.
pub(crate) fn is_forked() -> bool {
    *FIRST.get_or_init(process::id) != process::id()
}

/// Runs work whose parts go to all cores.
pub(crate) fn spread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match is_forked().then(pool_of_fork).flatten() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The threads of a forked process; `None` if the system gives not even one.
fn pool_of_fork() -> Option<Arc<ThreadPool>> {
    static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match &*pool {
        Some((process, pool)) if *process == process::id() => Some(Arc::clone(pool)),
        _ => {
            let name = |i| format!("ebm-encode-{i}");
            let new = Arc::new(ThreadPoolBuilder::new().thread_name(name).build().ok()?);
            // A pool of the process before is forgotten, not ended: it has no threads here.
            if let Some(former) = pool.replace((process::id(), Arc::clone(&new))) {
                std::mem::forget(former);
            }
            Some(new)
        }
    }
}
