//! Work that is spread over the cores, in a process that may have been forked.
//!
//! A fork takes one thread along. Work given to the others would be waited for without end, so a
//! forked process, a worker of a `DataLoader` for example, gets its own threads. Whatever has
//! threads in the crates of ebm-encode has them from here.
//!
//! ```
//! use rayon::prelude::*;
//!
//! let sum: u64 = ebm_threads::spread(|| (0..1000_u64).into_par_iter().sum());
//! assert_eq!(sum, 499_500);
//! ```

use std::mem;
use std::num::NonZero;
use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

static FIRST: OnceLock<u32> = OnceLock::new();

/// Notes that the threads of the whole process are this process's. Call it before anything forks;
/// else the first work that is spread does.
pub fn note_process() {
    FIRST.get_or_init(process::id);
}

/// Whether this process was forked from one whose threads stayed there.
pub fn is_forked() -> bool {
    *FIRST.get_or_init(process::id) != process::id()
}

/// Runs work whose parts go to all cores.
pub fn spread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match is_forked().then(pool_of_fork).flatten() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// The threads of a forked process; `None` if the system gives not even one.
fn pool_of_fork() -> Option<Arc<ThreadPool>> {
    static POOL: ForkedPool = ForkedPool::new();
    POOL.get(|| build("ebm-encode", None)).ok()
}

/// Threads for one kind of work, in whichever process asks.
#[derive(Debug)]
pub struct Threads {
    name: &'static str,
    count: NonZero<usize>,
    /// Of the process that made this; no lock is needed to use them.
    first: Option<ThreadPool>,
    process: u32,
    forked: ForkedPool,
}

impl Threads {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn new(name: &'static str, count: NonZero<usize>) -> Result<Self, ThreadPoolBuildError> {
        let (first, process) = (Some(build(name, Some(count))?), process::id());
        Ok(Self { name, count, first, process, forked: ForkedPool::new() })
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count.get()
    }

    /// Runs work on them; in a forked process on new ones.
    ///
    /// # Errors
    /// If the system gives a forked process none.
    pub fn install<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, ThreadPoolBuildError> {
        match &self.first {
            Some(pool) if self.process == process::id() => Ok(pool.install(work)),
            _ => Ok(self.forked.get(|| build(self.name, Some(self.count)))?.install(work)),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.process != process::id() {
            mem::forget(self.first.take()); // its threads are not here to be ended
        }
    }
}

/// The threads of a forked process, and of one that is forked from that.
#[derive(Debug)]
struct ForkedPool(Mutex<Option<(u32, Arc<ThreadPool>)>>);

impl ForkedPool {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(
        &self,
        build: impl FnOnce() -> Result<ThreadPool, ThreadPoolBuildError>,
    ) -> Result<Arc<ThreadPool>, ThreadPoolBuildError> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pool {
            Some((process, pool)) if *process == process::id() => Ok(Arc::clone(pool)),
            _ => {
                let new = Arc::new(build()?);
                // A pool of the process before is forgotten, not ended: it has no threads here.
                if let Some(former) = pool.replace((process::id(), Arc::clone(&new))) {
                    mem::forget(former);
                }
                Ok(new)
            }
        }
    }
}

impl Drop for ForkedPool {
    fn drop(&mut self) {
        let pool = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, pool)) = pool.filter(|(process, _)| *process != process::id()) {
            mem::forget(pool);
        }
    }
}

fn build(
    name: &'static str,
    count: Option<NonZero<usize>>,
) -> Result<ThreadPool, ThreadPoolBuildError> {
    let count = count.map_or(0, NonZero::get); // 0: one for each core
    ThreadPoolBuilder::new().num_threads(count).thread_name(move |i| format!("{name}-{i}")).build()
}
