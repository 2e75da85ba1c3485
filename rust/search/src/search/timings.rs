//! Where the time of searches went.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The stages of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Candidates of the policy.
    Policy,
    /// Tactics applied by the environment; its start for a theorem is one call.
    Environment,
    /// Whole proofs verified.
    Verification,
    /// Scoring, without the encoder.
    Scorer,
    /// Embeddings for scores: lookups, waiting for the model, the model.
    Encoder,
}

impl Stage {
    /// All stages.
    pub const ALL: [Self; 5] =
        [Self::Policy, Self::Environment, Self::Verification, Self::Scorer, Self::Encoder];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Environment => "environment",
            Self::Verification => "verification",
            Self::Scorer => "scorer",
            Self::Encoder => "encoder",
        }
    }
}

/// Calls of one stage: how many, their time, and its distribution with three digits.
#[derive(Debug, Clone)]
pub struct StageTimes {
    nanoseconds: Histogram<u64>,
    total: Duration,
}

impl StageTimes {
    /// Number of calls.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// Their time together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The time within which this share of the calls ended (0.5: the median).
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_quantile(share))
    }
}

/// Where the time of one or many searches went.
#[derive(Debug, Clone)]
pub struct Timings {
    stages: [StageTimes; 5],
    total: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        let stage = || StageTimes {
            nanoseconds: Histogram::new(3).expect("three digits are within the limits"),
            total: Duration::ZERO,
        };
        Self { stages: [(); 5].map(|()| stage()), total: Duration::ZERO }
    }
}

impl Timings {
    /// The calls of a stage.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &StageTimes {
        &self.stages[stage as usize]
    }

    /// The time of all searches, one after the other.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.total
    }

    /// What is in no stage: the frontier, the graph.
    #[must_use]
    pub fn own(&self) -> Duration {
        let stages: Duration = self.stages.iter().map(StageTimes::total).sum();
        self.total.saturating_sub(stages)
    }

    /// Adds the searches of another thread.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.total += theirs.total;
            // Both resize by themselves, so nothing is out of range.
            let _ = mine.nanoseconds.add(&theirs.nanoseconds);
        }
        self.total += other.total;
    }

    pub(super) fn add(&mut self, stage: Stage, time: Duration) {
        let stage = &mut self.stages[stage as usize];
        stage.total += time;
        // It resizes by itself, so nothing is out of range.
        let _ = stage.nanoseconds.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn add_search(&mut self, time: Duration) {
        self.total += time;
    }
}
