//! The same log-probability for all candidates.

use crate::search::{Control, Policy, PolicyError, Proposal, Query};

/// The candidates of another policy, all with the log-probability `-ln(n)` of one of n.
#[derive(Debug, Clone)]
pub struct UniformPolicy<P> {
    candidates: P,
}

impl<P: Policy> UniformPolicy<P> {
    /// Takes its candidates from a policy.
    #[must_use]
    pub const fn new(candidates: P) -> Self {
        Self { candidates }
    }
}

impl<P: Policy> Policy for UniformPolicy<P> {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        let mut proposals = self.candidates.propose(queries, control)?;
        for candidates in proposals.iter_mut().flatten() {
            let log_prob = -(candidates.len() as f64).ln();
            for candidate in candidates {
                candidate.log_prob = log_prob;
            }
        }
        Ok(proposals)
    }
}
