//! Recorded searches as an environment.

use std::sync::Arc;

use crate::recording::{RecordedTheorem, Recording};
use crate::search::{
    Applied, Control, Environment, EnvironmentError, EnvironmentResult, Session, StateId, Target,
    Theorem, Verdict,
};

/// A search in what earlier searches recorded: a recorded tactic leads where it led, any other is refused.
///
/// A record knows only what was tried. A state that was never expanded costs an expansion and brings
/// nothing, and the search that was recorded chose what was expanded, so a record flatters rankings like
/// its own.
#[derive(Debug, Clone)]
pub struct ReplayEnvironment {
    recording: Arc<Recording>,
}

impl ReplayEnvironment {
    /// An environment of recorded searches.
    #[must_use]
    pub fn new(recording: impl Into<Arc<Recording>>) -> Self {
        Self { recording: recording.into() }
    }

    fn theorem(&self, theorem: &Theorem) -> EnvironmentResult<(&RecordedTheorem, usize)> {
        let wrong = |reason: &str| EnvironmentError::Theorem {
            theorem: theorem.name.clone(),
            reason: reason.to_owned(),
        };
        let recorded = self.recording.theorem(&theorem.name);
        let recorded = recorded.ok_or_else(|| wrong("is not in the record"))?;
        let root = recorded.root.ok_or_else(|| wrong("no state without a parent is recorded"))?;
        Ok((recorded, root))
    }
}

impl Environment for ReplayEnvironment {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn start<'a>(
        &'a self,
        theorem: &'a Theorem,
        _control: &Control,
    ) -> EnvironmentResult<(Box<dyn Session + 'a>, Arc<str>)> {
        let (theorem, root) = self.theorem(theorem)?;
        Ok((Box::new(Replayed { theorem, root }), Arc::clone(&theorem.states[root].text)))
    }

    /// A recorded proof is believed: each step is looked up again.
    fn verify(
        &self,
        theorem: &Theorem,
        proofs: &[Vec<Arc<str>>],
        _control: &Control,
    ) -> EnvironmentResult<Vec<Verdict>> {
        let (recorded, root) = self.theorem(theorem)?;
        Ok(proofs.iter().map(|proof| follow(recorded, root, proof)).collect())
    }
}

fn follow(theorem: &RecordedTheorem, root: usize, proof: &[Arc<str>]) -> Verdict {
    let mut at = Target::State(root);
    for (number, tactic) in proof.iter().enumerate() {
        let refused = |reason: &str| Verdict::Refused(format!("step {}: {reason}", number + 1));
        let Target::State(state) = at else { return refused("the proof is finished before it") };
        match theorem.states[state].accepted.get(tactic) {
            Some(target) => at = *target,
            None => return refused("is not recorded"),
        }
    }
    match at {
        Target::Finished => Verdict::Proof,
        Target::State(_) => Verdict::Refused("goals are left".to_owned()),
    }
}

/// A theorem under replay. A state is numbered by its place in the record plus 1; 0 is the root.
struct Replayed<'a> {
    theorem: &'a RecordedTheorem,
    root: usize,
}

impl Session for Replayed<'_> {
    fn apply(
        &mut self,
        state: StateId,
        tactics: &[Arc<str>],
        _control: &Control,
    ) -> EnvironmentResult<Vec<Applied>> {
        let place = match usize::try_from(state.0) {
            Ok(0) => Some(self.root),
            number => number.ok().map(|number| number - 1),
        };
        let known = place.and_then(|place| self.theorem.states.get(place));
        let known = known.ok_or_else(|| EnvironmentError::Failed {
            environment: "replay",
            reason: format!("there is no state {}", state.0),
        })?;
        let applied = |tactic: &Arc<str>| match known.accepted.get(tactic) {
            Some(Target::Finished) => Applied::Finished,
            Some(Target::State(child)) => Applied::Open {
                state: StateId(*child as u64 + 1),
                text: Arc::clone(&self.theorem.states[*child].text),
            },
            None => Applied::Refused("is not recorded".to_owned()),
        };
        Ok(tactics.iter().map(applied).collect())
    }

    fn dispose(&mut self, _state: StateId) {}
}
