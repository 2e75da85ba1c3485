//! Threads that read much at once, some of which wait for a disk or a store while others work.

use std::sync::LazyLock;
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::threads::{is_forked, spread};

/// Requests that wait for a store at a time: each has a row group of its own in memory.
const REQUESTS: usize = 8;
/// Threads of a core that read from a disk.
const OF_A_CORE: usize = 2;

/// Runs a step on threads that may wait for what they read.
pub(in crate::cache) fn many_at_once<T: Send>(remote: bool, step: impl FnOnce() -> T + Send) -> T {
    static OF_STORES: LazyLock<Option<ThreadPool>> = LazyLock::new(|| pool(REQUESTS));
    static OF_DISKS: LazyLock<Option<ThreadPool>> =
        LazyLock::new(|| pool(OF_A_CORE * available_parallelism().map_or(1, usize::from)));
    if is_forked() {
        return spread(step);
    }
    match if remote { &*OF_STORES } else { &*OF_DISKS } {
        Some(pool) => pool.install(step),
        None => step(),
    }
}

/// `None` where the system gives no more threads; those of the whole process then do.
fn pool(threads: usize) -> Option<ThreadPool> {
    let name = |i| format!("ebm-encode-read-{i}");
    ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build().ok()
}
