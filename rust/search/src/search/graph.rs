//! The states of a theorem and the steps between them, merged by text.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::environment::StateId;
use crate::scorer::Score;

/// Where a step led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To a state, by its number in the graph.
    State(usize),
    /// To the end of a proof, which was verified.
    Finished,
}

/// A tactic that was accepted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// The tactic.
    pub tactic: Arc<str>,
    /// Its log-probability under the policy.
    pub log_prob: f64,
    /// Where it led.
    pub target: Target,
    /// When it was found, in milliseconds of Unix time.
    pub found_ms: u64,
}

/// What is known of a state when the search has ended. The same three kinds, by the same definition, as
/// in `ebm_encode.heads.labels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Some steps lead from it to the end of a proof; the least number of them, at least 1.
    Proved(u32),
    /// Not proved, and every state that can be reached from it was expanded.
    Exhausted,
    /// Not proved, and something is left to try.
    Unknown,
}

/// A distinct state.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GraphState {
    /// Its text.
    pub text: Arc<str>,
    /// Steps from the root, along which it was first found.
    pub depth: u32,
    /// Sum of their log-probabilities.
    pub log_prob: f64,
    /// The state and its step by which this one was first found; `None` for the root.
    pub reached: Option<(usize, usize)>,
    /// The accepted tactics, in the order of the policy's candidates.
    pub steps: Vec<Step>,
    /// Tactics that the environment refused, false proofs and steps back to the state itself included.
    pub refused: u32,
    /// Whether all candidates that the policy proposed were applied.
    pub expanded: bool,
    /// Its score, if one was asked for.
    pub score: Option<Score>,
    /// When it was found, in milliseconds of Unix time.
    pub found_ms: u64,
    pub(super) id: StateId,
    pub(super) expanded_children: u32,
    distance: Option<u32>,
    parents: Vec<u32>,
}

/// The distinct states of a theorem in the order in which they were found; number 0 is the root.
#[derive(Debug, Clone, Default)]
pub struct ProofGraph {
    states: Vec<GraphState>,
    places: HashMap<Arc<str>, u32>,
}

impl ProofGraph {
    /// The states.
    #[must_use]
    pub fn states(&self) -> &[GraphState] {
        &self.states
    }

    /// The number of a state.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<usize> {
        self.places.get(text).map(|place| *place as usize)
    }

    /// The tactics by which a state was first found.
    #[must_use]
    pub fn tactics_to(&self, state: usize) -> Vec<Arc<str>> {
        let mut tactics = Vec::new();
        let mut at = state;
        while let Some((parent, step)) = self.states[at].reached {
            tactics.push(Arc::clone(&self.states[parent].steps[step].tactic));
            at = parent;
        }
        tactics.reverse();
        tactics
    }

    /// Least number of steps from a state to the end of a proof, as far as is known.
    #[must_use]
    pub fn distance(&self, state: usize) -> Option<u32> {
        self.states[state].distance
    }

    /// What is known of each state.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        let mut reaches_untried = vec![false; self.states.len()];
        let mut queue: VecDeque<usize> = VecDeque::new();
        for (number, state) in self.states.iter().enumerate() {
            if !state.expanded && state.distance.is_none() {
                reaches_untried[number] = true;
                queue.push_back(number);
            }
        }
        while let Some(number) = queue.pop_front() {
            for parent in &self.states[number].parents {
                let parent = *parent as usize;
                if !reaches_untried[parent] {
                    reaches_untried[parent] = true;
                    queue.push_back(parent);
                }
            }
        }
        let status = |(state, untried): (&GraphState, bool)| match state.distance {
            Some(distance) => Status::Proved(distance),
            None if untried => Status::Unknown,
            None => Status::Exhausted,
        };
        self.states.iter().zip(reaches_untried).map(status).collect()
    }

    /// The root of a new search.
    pub(super) fn with_root(text: Arc<str>, found_ms: u64) -> Self {
        let mut graph = Self::default();
        graph.add(text, StateId::ROOT, None, 0.0, found_ms);
        graph
    }

    pub(super) fn state_mut(&mut self, state: usize) -> &mut GraphState {
        &mut self.states[state]
    }

    /// Adds a state that a step led to, unless it is there; gives its number, and whether it is new.
    /// The step itself is added by [`Self::connect`].
    pub(super) fn reach(
        &mut self,
        parent: usize,
        log_prob: f64,
        text: Arc<str>,
        id: StateId,
        found_ms: u64,
    ) -> (usize, bool) {
        if let Some(known) = self.find(&text) {
            return (known, false);
        }
        let step = self.states[parent].steps.len();
        (self.add(text, id, Some((parent, step)), log_prob, found_ms), true)
    }

    /// Adds a step, and what it means for distances.
    pub(super) fn connect(&mut self, parent: usize, step: Step) {
        let distance = match step.target {
            Target::Finished => Some(1),
            Target::State(child) => {
                // A state has few steps, and the same child twice is rare.
                let seen = |other: &Step| other.target == step.target;
                if !self.states[parent].steps.iter().any(seen) {
                    self.states[child].parents.push(number(parent));
                }
                self.states[child].distance.map(|distance| distance + 1)
            }
        };
        self.states[parent].steps.push(step);
        if let Some(distance) = distance {
            self.shorten(parent, distance);
        }
    }

    /// Marks a state as expanded.
    pub(super) fn expand(&mut self, state: usize) {
        self.states[state].expanded = true;
        if let Some((parent, _)) = self.states[state].reached {
            self.states[parent].expanded_children += 1;
        }
    }

    /// A state is at most this far from the end of a proof, and its ancestors accordingly.
    fn shorten(&mut self, state: usize, distance: u32) {
        let mut queue = VecDeque::from([(state, distance)]);
        while let Some((state, distance)) = queue.pop_front() {
            if self.states[state].distance.is_some_and(|known| known <= distance) {
                continue;
            }
            self.states[state].distance = Some(distance);
            let parents = self.states[state].parents.iter();
            queue.extend(parents.map(|parent| (*parent as usize, distance + 1)));
        }
    }

    fn add(
        &mut self,
        text: Arc<str>,
        id: StateId,
        reached: Option<(usize, usize)>,
        log_prob: f64,
        found_ms: u64,
    ) -> usize {
        let place = self.states.len();
        self.places.insert(Arc::clone(&text), number(place));
        let before = reached.map(|(parent, _)| &self.states[parent]);
        self.states.push(GraphState {
            text,
            depth: before.map_or(0, |parent| parent.depth + 1),
            log_prob: before.map_or(0.0, |parent| parent.log_prob) + log_prob,
            reached,
            steps: Vec::new(),
            refused: 0,
            expanded: false,
            score: None,
            found_ms,
            id,
            expanded_children: 0,
            distance: None,
            parents: Vec::new(),
        });
        place
    }
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("a search is stopped before four billion states")
}
