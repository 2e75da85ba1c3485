//! When a search has to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A flag that stops searches from another thread. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops all searches that hold this flag, as soon as their present call returns.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why a search must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// [`Cancel::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
    /// The time for this theorem is over.
    #[error("the time for this theorem is over")]
    Time,
}

/// How long a call of a search may take. Whoever waits (for a child process, a server, a worker) asks
/// this, and returns early once it says so.
#[derive(Debug, Clone, Default)]
pub struct Control {
    cancel: Cancel,
    deadline: Option<Instant>,
}

impl Control {
    /// Longest wait between two looks at the flag.
    pub const TICK: Duration = Duration::from_millis(50);

    /// Without a limit of time.
    #[must_use]
    pub fn new(cancel: Cancel) -> Self {
        Self { cancel, deadline: None }
    }

    /// The same with a deadline.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Stop`], with the reason to stop.
    pub fn check(&self) -> Result<(), Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Stop::Time),
            _ => Ok(()),
        }
    }

    /// The time until the deadline, if there is one.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The time to wait before the next [`Control::check`]: at most [`Control::TICK`], `most`, and what
    /// is left until the deadline.
    #[must_use]
    pub fn wait(&self, most: Duration) -> Duration {
        most.min(Self::TICK).min(self.left().unwrap_or(Duration::MAX))
    }
}
