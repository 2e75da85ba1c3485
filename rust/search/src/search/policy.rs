//! What proposes tactics.

use std::error::Error;
use std::sync::Arc;

use super::control::{Control, Stop};

/// A proposed tactic.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// The tactic.
    pub tactic: Arc<str>,
    /// Its log-probability under the policy, at most 0 and finite.
    pub log_prob: f64,
}

impl Candidate {
    /// A tactic with its log-probability.
    #[must_use]
    pub fn new(tactic: impl Into<Arc<str>>, log_prob: f64) -> Self {
        Self { tactic: tactic.into(), log_prob }
    }
}

/// A state for which tactics are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query<'a> {
    /// The name of the theorem.
    pub theorem: &'a str,
    /// The state as the environment prints it.
    pub state: &'a str,
}

impl<'a> Query<'a> {
    /// A state of a theorem.
    #[must_use]
    pub fn new(theorem: &'a str, state: &'a str) -> Self {
        Self { theorem, state }
    }
}

/// Why there are no candidates for one state, though there may be for others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoCandidates(pub String);

/// Why a policy gives no answer at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The model or the server behind it failed, also when asked again.
    #[error("{policy}: {cause}")]
    Failed {
        /// Its name.
        policy: &'static str,
        /// What happened. Not this error's `source`, since the message says it already.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// It would fail for every other state, too: a wrong key, address or model.
    #[error("{policy}: {cause}")]
    Unavailable {
        /// Its name.
        policy: &'static str,
        /// What happened. Not this error's `source`, since the message says it already.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The search was stopped while it waited.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

/// The candidates of a state, distinct and in the policy's order, or why there are none.
pub type Proposal = Result<Vec<Candidate>, NoCandidates>;

/// Proposes tactics for states. Many threads share one.
pub trait Policy: Send + Sync {
    /// What it is called in messages and in records: `recorded`, `uniform`, `hf`, `http`.
    fn name(&self) -> &'static str;

    /// Candidates for each state, in their order.
    ///
    /// # Errors
    /// [`PolicyError`]. A state without candidates is no error.
    fn propose(
        &self,
        queries: &[Query<'_>],
        control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError>;
}
