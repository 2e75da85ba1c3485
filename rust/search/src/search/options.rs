//! How a search is done.

use std::time::Duration;

use super::priority::Ranking;

/// How far a search for one theorem may go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Most expansions.
    pub expansions: u64,
    /// Most distinct states.
    pub states: u64,
    /// Most tactics that are applied.
    pub tactics: u64,
    /// States at this depth are not expanded.
    pub depth: u32,
    /// Most time.
    pub time: Option<Duration>,
}

impl Default for Limits {
    /// 600 expansions, and otherwise no limit but memory: 1,000,000 states.
    fn default() -> Self {
        Self { expansions: 600, states: 1_000_000, tactics: u64::MAX, depth: u32::MAX, time: None }
    }
}

impl Limits {
    /// The same with at most this many expansions.
    #[must_use]
    pub const fn with_expansions(mut self, expansions: u64) -> Self {
        self.expansions = expansions;
        self
    }

    /// The same with at most this many distinct states.
    #[must_use]
    pub const fn with_states(mut self, states: u64) -> Self {
        self.states = states;
        self
    }

    /// The same with at most this many applied tactics.
    #[must_use]
    pub const fn with_tactics(mut self, tactics: u64) -> Self {
        self.tactics = tactics;
        self
    }

    /// The same without the expansion of states at this depth.
    #[must_use]
    pub const fn with_depth(mut self, depth: u32) -> Self {
        self.depth = depth;
        self
    }

    /// The same with at most this much time.
    #[must_use]
    pub const fn with_time(mut self, time: Option<Duration>) -> Self {
        self.time = time;
        self
    }
}

/// Options of a search.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SearchOptions {
    /// Which state is expanded next.
    pub ranking: Ranking,
    /// How far it may go.
    pub limits: Limits,
    /// States that are expanded together, with one request to the policy and one to the scorer.
    /// More than 1 changes the order of expansions.
    pub batch: usize,
    /// Expansions after the first proof, for the record. 0 ends the search at the proof.
    pub record_after_proof: u64,
}

impl Default for SearchOptions {
    /// The policy divided by the square root of the depth, one state at a time, up to the first proof.
    fn default() -> Self {
        Self {
            ranking: Ranking::policy(0.5),
            limits: Limits::default(),
            batch: 1,
            record_after_proof: 0,
        }
    }
}

impl SearchOptions {
    /// The same with another ranking.
    #[must_use]
    pub const fn with_ranking(mut self, ranking: Ranking) -> Self {
        self.ranking = ranking;
        self
    }

    /// The same with other limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same with this many states expanded together; at least 1.
    #[must_use]
    pub fn with_batch(mut self, batch: usize) -> Self {
        self.batch = batch.max(1);
        self
    }

    /// The same with this many expansions after the first proof.
    #[must_use]
    pub const fn with_record_after_proof(mut self, expansions: u64) -> Self {
        self.record_after_proof = expansions;
        self
    }
}
