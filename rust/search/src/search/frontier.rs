//! The open states of a search, best first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// An open state with its priority.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) priority: f64,
    /// The order in which states were found decides between equals.
    pub(super) state: usize,
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.total_cmp(&other.priority).then(other.state.cmp(&self.state))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Open {}

/// A heap whose priorities may have sunk since their states were put in.
#[derive(Debug, Default)]
pub(super) struct Frontier(BinaryHeap<Open>);

impl Frontier {
    pub(super) fn push(&mut self, state: usize, priority: f64) {
        self.0.push(Open { priority, state });
    }

    /// Takes out the best state. `now` gives the priority that a state has by now, which is at most the
    /// one that it was put in with.
    pub(super) fn pop(&mut self, now: impl Fn(Open) -> f64) -> Option<usize> {
        loop {
            let open = self.0.pop()?;
            let priority = now(open);
            if priority.total_cmp(&open.priority) == Ordering::Less {
                self.push(open.state, priority);
            } else {
                return Some(open.state);
            }
        }
    }
}
