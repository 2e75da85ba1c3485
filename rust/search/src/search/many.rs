//! Many searches at once.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use flume::RecvTimeoutError;

use super::control::Cancel;
use super::environment::Theorem;
use super::result::SearchResult;
use super::run::Search;
use super::timings::Timings;

/// Results that wait to be taken before searches wait for that.
const WAITING: usize = 64;
/// How long nothing may come until whoever takes results is told so.
const QUIET: Duration = Duration::from_millis(250);

impl Search<'_> {
    /// Searches for proofs of theorems with some threads, each with one theorem at a time.
    ///
    /// `take` gets each result on the calling thread as it comes; an error of it ends all searches. The
    /// searches do not depend on each other, so the results are the same with any number of threads,
    /// as far as environment and policy are deterministic and no time limit is reached.
    ///
    /// # Errors
    /// What `take` returns.
    ///
    /// # Panics
    /// If a policy, an environment or a scorer panics.
    pub fn run_all<E>(
        &self,
        theorems: &[Theorem],
        threads: usize,
        cancel: &Cancel,
        mut take: impl FnMut(SearchResult) -> Result<(), E>,
    ) -> Result<Timings, E> {
        self.run_all_with_ticks(theorems, threads, cancel, |result| {
            result.map_or(Ok(()), &mut take)
        })
    }

    /// The same, and `take` gets `None` whenever no result came for a quarter of a second: time to write
    /// what waits, or to show that searches are under way.
    ///
    /// # Errors
    /// What `take` returns.
    ///
    /// # Panics
    /// If a policy, an environment or a scorer panics.
    pub fn run_all_with_ticks<E>(
        &self,
        theorems: &[Theorem],
        threads: usize,
        cancel: &Cancel,
        mut take: impl FnMut(Option<SearchResult>) -> Result<(), E>,
    ) -> Result<Timings, E> {
        let next = AtomicUsize::new(0);
        let (sender, results) = flume::bounded(WAITING);
        thread::scope(|scope| {
            let spawn = |_| {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    let mut timings = Timings::default();
                    while !cancel.is_cancelled()
                        && let Some(theorem) = theorems.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let result = self.run(theorem, cancel, &mut timings);
                        if sender.send(result).is_err() {
                            break; // nobody takes results any more
                        }
                    }
                    timings
                })
            };
            let workers: Vec<_> = (0..threads.clamp(1, theorems.len().max(1))).map(spawn).collect();
            drop(sender);
            let mut taken = Ok(());
            while taken.is_ok() {
                taken = match results.recv_timeout(QUIET) {
                    Ok(result) => take(Some(result)),
                    Err(RecvTimeoutError::Timeout) => take(None),
                    Err(RecvTimeoutError::Disconnected) => break, // all searches have ended
                };
            }
            if taken.is_err() {
                cancel.cancel();
            }
            drop(results);
            let mut all = Timings::default();
            for worker in workers {
                match worker.join() {
                    Ok(timings) => all.merge(&timings),
                    Err(panic) => panic::resume_unwind(panic),
                }
            }
            taken.map(|()| all)
        })
    }
}
