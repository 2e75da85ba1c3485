//! An environment and a policy over a small tree.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebm_search::search::{
    Applied, Candidate, Control, Environment, EnvironmentError, EnvironmentResult, NoCandidates,
    Policy, PolicyError, Proposal, Query, Session, StateId, Theorem, Verdict,
};

/// What a tactic does in the tree: a state's text, `finish`, `lie` (finishes, and is no proof), or
/// `refuse`.
pub type Steps = HashMap<(String, String), String>;

/// A tree by its steps; every theorem has the same, with the root `root`.
pub struct Tree {
    pub steps: Steps,
    /// How often tactics were applied.
    pub applied: AtomicUsize,
    /// A tactic of this name makes the environment fail.
    pub fails_at: Option<&'static str>,
}

impl Tree {
    /// Steps as `(state, tactic, result)`.
    pub fn new(steps: &[(&str, &str, &str)]) -> Self {
        let step = |(state, tactic, result): &(&str, &str, &str)| {
            (((*state).to_owned(), (*tactic).to_owned()), (*result).to_owned())
        };
        Self {
            steps: steps.iter().map(step).collect(),
            applied: AtomicUsize::new(0),
            fails_at: None,
        }
    }
}

struct TreeSession<'a> {
    tree: &'a Tree,
    texts: Vec<String>,
}

impl Environment for Tree {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn start<'a>(
        &'a self,
        theorem: &'a Theorem,
        control: &Control,
    ) -> EnvironmentResult<(Box<dyn Session + 'a>, Arc<str>)> {
        control.check()?;
        if theorem.name == "unknown" {
            let reason = "is unknown".to_owned();
            return Err(EnvironmentError::Theorem { theorem: theorem.name.clone(), reason });
        }
        let session = TreeSession { tree: self, texts: vec!["root".to_owned()] };
        Ok((Box::new(session), Arc::from("root")))
    }

    fn verify(
        &self,
        _theorem: &Theorem,
        proofs: &[Vec<Arc<str>>],
        _control: &Control,
    ) -> EnvironmentResult<Vec<Verdict>> {
        let verdict = |proof: &Vec<Arc<str>>| {
            let mut state = "root".to_owned();
            for tactic in proof {
                match self.steps.get(&(state.clone(), tactic.to_string())).map(String::as_str) {
                    Some("finish") => return Verdict::Proof,
                    Some(next) => next.clone_into(&mut state),
                    None => break,
                }
            }
            Verdict::Refused("uses sorry".to_owned())
        };
        Ok(proofs.iter().map(verdict).collect())
    }
}

impl Session for TreeSession<'_> {
    fn apply(
        &mut self,
        state: StateId,
        tactics: &[Arc<str>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Applied>> {
        control.check()?;
        let from = self.texts[usize::try_from(state.0).expect("a small number")].clone();
        let mut answers = Vec::new();
        for tactic in tactics {
            if self.tree.fails_at == Some(tactic) {
                let reason = "died twice".to_owned();
                return Err(EnvironmentError::Failed { environment: "tree", reason });
            }
            self.tree.applied.fetch_add(1, Ordering::Relaxed);
            answers.push(match self.tree.steps.get(&(from.clone(), tactic.to_string())) {
                None => Applied::Refused("no such tactic".to_owned()),
                Some(result) => match result.as_str() {
                    "refuse" => Applied::Refused("refused".to_owned()),
                    "finish" | "lie" => Applied::Finished,
                    text => {
                        self.texts.push(text.to_owned());
                        let state = StateId(self.texts.len() as u64 - 1);
                        Applied::Open { state, text: Arc::from(text) }
                    }
                },
            });
        }
        Ok(answers)
    }

    fn dispose(&mut self, _state: StateId) {}
}

/// Proposes the tactics of a tree, in alphabetical order, with the log-probability that stands behind a
/// colon (`a:-0.5`), or 0.
pub struct TreePolicy(pub Steps);

impl Policy for TreePolicy {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        _control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        let proposal = |query: &Query<'_>| {
            if query.state.contains("mute") {
                return Err(NoCandidates("too long".to_owned()));
            }
            let here = self.0.keys().filter(|(state, _)| state == query.state);
            let mut tactics: Vec<&str> = here.map(|(_, tactic)| tactic.as_str()).collect();
            tactics.sort_unstable();
            let log_prob = |tactic: &str| -> f64 {
                tactic.split_once(':').map_or(0.0, |(_, number)| number.parse().expect("a number"))
            };
            Ok(tactics.into_iter().map(|tactic| Candidate::new(tactic, log_prob(tactic))).collect())
        };
        Ok(queries.iter().map(proposal).collect())
    }
}
