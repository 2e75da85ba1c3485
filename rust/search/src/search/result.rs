//! What a search found.

use std::sync::Arc;
use std::time::Duration;

use super::control::Stop;
use super::environment::EnvironmentError;
use super::graph::ProofGraph;
use super::policy::PolicyError;
use super::scoring::ScorerError;

/// A proof that was verified as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proof {
    /// Its tactics, from the root.
    pub tactics: Vec<Arc<str>>,
    /// Expansions until it was found, that one included.
    pub expansions: u64,
}

/// Tactics after which no goal was left, although they are no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FalseProof {
    /// The tactics, from the root.
    pub tactics: Vec<Arc<str>>,
    /// Why the verification refused them.
    pub reason: String,
}

/// Why a search could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// The environment gave no answer.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// The policy gave no answer.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The scorer gave no answer.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
    /// A policy, a scorer or an environment broke the contract of its trait.
    #[error("{0}")]
    Contract(String),
}

impl SearchError {
    /// Whether it is only that the search was stopped.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        match self {
            Self::Environment(EnvironmentError::Stopped(stop))
            | Self::Policy(PolicyError::Stopped(stop))
            | Self::Scorer(ScorerError::Stopped(stop)) => Some(*stop),
            _ => None,
        }
    }

    /// Whether every other theorem would fail in the same way.
    #[must_use]
    pub fn concerns_all(&self) -> bool {
        matches!(
            self,
            Self::Environment(EnvironmentError::Unavailable { .. })
                | Self::Policy(PolicyError::Unavailable { .. })
        )
    }
}

/// Why a search ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// A proof was found, and the record after it is complete, or something failed then.
    Proved,
    /// No open state is left.
    Exhausted,
    /// No open state is left but those at the depth limit.
    Depth,
    /// The limit of expansions was reached.
    Expansions,
    /// The limit of states was reached.
    States,
    /// The limit of tactics was reached.
    Tactics,
    /// The time was over.
    Time,
    /// It was cancelled; what it found is incomplete.
    Cancelled,
    /// Something failed; what was found until then is there.
    Failed(SearchError),
}

impl Ended {
    /// Its name in records and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Exhausted => "exhausted",
            Self::Depth => "depth limit",
            Self::Expansions => "expansion limit",
            Self::States => "state limit",
            Self::Tactics => "tactic limit",
            Self::Time => "time limit",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether the search did all that it was to do, so that it need not be done again.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        !matches!(self, Self::Cancelled | Self::Failed(_))
    }
}

/// The search for one theorem.
#[derive(Debug)]
#[non_exhaustive]
pub struct SearchResult {
    /// The theorem's name.
    pub theorem: String,
    /// What it says, where that was given.
    pub statement: Option<String>,
    /// The first proof.
    pub proof: Option<Proof>,
    /// Why the search ended.
    pub ended: Ended,
    /// What failed after the proof was found, so that the record after it is not complete.
    pub failed_after_proof: Option<SearchError>,
    /// The states and steps that were found.
    pub graph: ProofGraph,
    /// The states that were expanded, by their numbers in the graph, in that order.
    pub expanded: Vec<usize>,
    /// Tactics that were applied.
    pub tactics: u64,
    /// Expanded states from which no candidate led on.
    pub without_steps: u64,
    /// States for which the policy could not say candidates; of a replay, those that the record never
    /// expanded. They count as expansions, and not as exhausted.
    pub without_candidates: u64,
    /// States that were to be scored and have no score.
    pub unscored: u64,
    /// Why the first of them have none, and the first states have no candidates.
    pub complaints: Vec<String>,
    /// What looked like a proof and was refused.
    pub false_proofs: Vec<FalseProof>,
    /// How long it took.
    pub time: Duration,
}

impl SearchResult {
    /// Number of expansions.
    #[must_use]
    pub fn expansions(&self) -> u64 {
        self.expanded.len() as u64
    }
}
