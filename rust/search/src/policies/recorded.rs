//! The policy of recorded searches.

use std::sync::Arc;

use crate::recording::{RecordedState, Recording};
use crate::search::{Candidate, Control, NoCandidates, Policy, PolicyError, Proposal, Query};

/// Proposes what was recorded for a state: of the tactics to each target, the one with the largest
/// log-probability, in the order of the record. Where the record has no log-probabilities, all are equal.
#[derive(Debug, Clone)]
pub struct RecordedPolicy {
    recording: Arc<Recording>,
}

impl RecordedPolicy {
    /// The policy of some recorded searches.
    #[must_use]
    pub fn new(recording: impl Into<Arc<Recording>>) -> Self {
        Self { recording: recording.into() }
    }

    fn proposal(&self, query: &Query<'_>) -> Proposal {
        let unknown = || NoCandidates("the state is not in the record".to_owned());
        let theorem = self.recording.theorem(query.theorem).ok_or_else(unknown)?;
        let place = theorem.places.get(query.state).ok_or_else(unknown)?;
        let state = &theorem.states[*place];
        if !state.expanded {
            return Err(NoCandidates("the record never expanded the state".to_owned()));
        }
        Ok(self.candidates(state))
    }

    fn candidates(&self, state: &RecordedState) -> Vec<Candidate> {
        let uniform = -(state.steps.len() as f64).ln();
        let steps = state.steps.iter();
        steps
            .map(|step| {
                let known = self.recording.has_policy();
                Candidate::new(
                    Arc::clone(&step.tactic),
                    if known { step.log_prob } else { uniform },
                )
            })
            .collect()
    }
}

impl Policy for RecordedPolicy {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        _control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        Ok(queries.iter().map(|query| self.proposal(query)).collect())
    }
}
