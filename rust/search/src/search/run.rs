//! One search.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::control::{Cancel, Control, Stop};
use super::environment::{Applied, Environment, Session, StateId, Theorem, Verdict};
use super::frontier::Frontier;
use super::graph::{ProofGraph, Step, Target};
use super::options::SearchOptions;
use super::policy::{Candidate, Policy, Query};
use super::result::{Ended, FalseProof, Proof, SearchError, SearchResult};
use super::scoring::Scorer;
use super::timings::{Stage, Timings};
use crate::scorer::{Node, Score};

/// Complaints of one search that are kept.
const COMPLAINTS: usize = 5;

/// Best-first search over an environment, with a policy and perhaps a scorer.
///
/// Open states wait in a heap. The best is expanded: the policy's candidates are applied, and each new
/// state is scored and put into the heap. States are merged by their text; a state is taken up as it is
/// first found. An expansion that leaves no goal ends the search, if the environment's verification says
/// that it is a proof.
#[derive(Clone, Copy)]
pub struct Search<'a> {
    environment: &'a dyn Environment,
    policy: &'a dyn Policy,
    scorer: Option<&'a dyn Scorer>,
    options: &'a SearchOptions,
}

impl<'a> Search<'a> {
    /// A search without scores.
    #[must_use]
    pub fn new(
        environment: &'a dyn Environment,
        policy: &'a dyn Policy,
        options: &'a SearchOptions,
    ) -> Self {
        Self { environment, policy, scorer: None, options }
    }

    /// The same with scores, if the ranking uses them.
    #[must_use]
    pub fn with_scorer(mut self, scorer: &'a dyn Scorer) -> Self {
        self.scorer = Some(scorer);
        self
    }

    /// Searches for a proof, until one of the limits is reached. Everything that goes wrong is in the
    /// result.
    pub fn run(&self, theorem: &Theorem, cancel: &Cancel, timings: &mut Timings) -> SearchResult {
        let start = Instant::now();
        let deadline = self.options.limits.time.and_then(|time| start.checked_add(time));
        let control = Control::new(cancel.clone()).with_deadline(deadline);
        let mut running = Running::new(*self, theorem, control, timings);
        let ended = running.search();
        let Running { mut result, .. } = running;
        result.ended = ended.unwrap_or_else(|error| match error.stop() {
            Some(Stop::Cancelled) => Ended::Cancelled,
            Some(Stop::Time) => Ended::Time,
            None if result.proof.is_some() => {
                // A verified proof is none the worse for what fails after it.
                result.failed_after_proof = Some(error);
                Ended::Proved
            }
            None => Ended::Failed(error),
        });
        result.time = start.elapsed();
        timings.add_search(result.time);
        result
    }
}

/// A search that is under way.
struct Running<'a, 'b> {
    search: Search<'a>,
    theorem: &'b Theorem,
    control: Control,
    timings: &'b mut Timings,
    frontier: Frontier,
    /// Whether a state was not put into the frontier because of its depth.
    too_deep: bool,
    result: SearchResult,
}

/// A new state, to be scored and put into the frontier.
type New = usize;

impl<'a, 'b> Running<'a, 'b> {
    fn new(
        search: Search<'a>,
        theorem: &'b Theorem,
        control: Control,
        timings: &'b mut Timings,
    ) -> Self {
        let result = SearchResult {
            theorem: theorem.name.clone(),
            statement: theorem.statement.clone(),
            proof: None,
            ended: Ended::Cancelled,
            failed_after_proof: None,
            graph: ProofGraph::default(),
            expanded: Vec::new(),
            tactics: 0,
            without_steps: 0,
            without_candidates: 0,
            unscored: 0,
            complaints: Vec::new(),
            false_proofs: Vec::new(),
            time: Duration::ZERO,
        };
        let frontier = Frontier::default();
        Self { search, theorem, control, timings, frontier, too_deep: false, result }
    }

    fn search(&mut self) -> Result<Ended, SearchError> {
        self.control.check().map_err(super::environment::EnvironmentError::from)?;
        let environment = self.search.environment;
        let start = Instant::now();
        let started = environment.start(self.theorem, &self.control);
        self.timings.add(Stage::Environment, start.elapsed());
        let (mut session, root) = started?;
        self.result.graph = ProofGraph::with_root(root, now_ms());
        if self.search.options.limits.depth == 0 {
            self.too_deep = true;
        } else {
            self.frontier.push(0, 0.0);
        }
        loop {
            if let Some(ended) = self.reached_limit()? {
                return Ok(ended);
            }
            let states = self.next_states();
            if states.is_empty() {
                return Ok(if self.too_deep { Ended::Depth } else { Ended::Exhausted });
            }
            self.expand(&mut *session, &states)?;
        }
    }

    fn reached_limit(&self) -> Result<Option<Ended>, SearchError> {
        self.control.check().map_err(super::environment::EnvironmentError::from)?;
        let limits = &self.search.options.limits;
        let found = &self.result;
        let recorded = self.search.options.record_after_proof;
        Ok(match &found.proof {
            Some(proof) if found.expansions() - proof.expansions >= recorded => Some(Ended::Proved),
            _ if found.expansions() >= limits.expansions => Some(Ended::Expansions),
            _ if found.tactics >= limits.tactics => Some(Ended::Tactics),
            _ if found.graph.states().len() as u64 >= limits.states => Some(Ended::States),
            _ => None,
        })
    }

    /// The best open states, as many as are expanded together.
    fn next_states(&mut self) -> Vec<usize> {
        let ranking = self.search.options.ranking;
        let graph = &self.result.graph;
        let now = |open: super::frontier::Open| {
            if ranking.exploration == 0.0 {
                return open.priority;
            }
            let state = &graph.states()[open.state];
            let siblings =
                state.reached.map_or(0, |(parent, _)| graph.states()[parent].expanded_children);
            let priority = ranking.priority(state.score.as_ref(), state.log_prob, state.depth);
            priority + ranking.bonus(siblings)
        };
        let left = self.search.options.limits.expansions - self.result.expansions();
        let most = self.search.options.batch.min(usize::try_from(left).unwrap_or(usize::MAX));
        std::iter::from_fn(|| self.frontier.pop(now)).take(most).collect()
    }

    fn expand(&mut self, session: &mut dyn Session, states: &[usize]) -> Result<(), SearchError> {
        let proposals = self.candidates(states)?;
        let mut new = Vec::new();
        for (&state, candidates) in states.iter().zip(proposals) {
            self.result.expanded.push(state);
            let Some(candidates) = candidates else { continue };
            self.apply(session, state, &candidates, &mut new)?;
            session.dispose(self.result.graph.states()[state].id);
            let recording = self.search.options.record_after_proof > 0;
            if self.result.proof.is_some() && !recording {
                return Ok(()); // the others of the batch are not expanded
            }
        }
        self.score(&new)?;
        let ranking = self.search.options.ranking;
        for state in new {
            let found = &self.result.graph.states()[state];
            if found.depth >= self.search.options.limits.depth {
                self.too_deep = true;
                continue;
            }
            let priority = ranking.priority(found.score.as_ref(), found.log_prob, found.depth);
            self.frontier.push(state, priority + ranking.bonus(0));
        }
        Ok(())
    }

    /// The policy's candidates for each state; `None` where it failed for that state.
    fn candidates(&mut self, states: &[usize]) -> Result<Vec<Option<Vec<Candidate>>>, SearchError> {
        let policy = self.search.policy;
        let graph = &self.result.graph;
        let query = |state: &usize| Query::new(&self.theorem.name, &graph.states()[*state].text);
        let queries: Vec<Query<'_>> = states.iter().map(query).collect();
        let start = Instant::now();
        let proposals = policy.propose(&queries, &self.control);
        self.timings.add(Stage::Policy, start.elapsed());
        let proposals = proposals?;
        if proposals.len() != states.len() {
            return Err(broken(policy.name(), "proposals", proposals.len(), states.len()));
        }
        let mut all = Vec::with_capacity(states.len());
        for proposal in proposals {
            let candidates = match proposal {
                Ok(candidates) => Some(candidates),
                Err(reason) => {
                    self.result.without_candidates += 1;
                    self.complain(format!("no candidates: {reason}"));
                    None
                }
            };
            let log_probs = candidates.iter().flatten().map(|candidate| candidate.log_prob);
            if let Some(wrong) = log_probs.clone().find(|value| !value.is_finite()) {
                let detail = format!("{}: a log-probability is {wrong}", policy.name());
                return Err(SearchError::Contract(detail));
            }
            all.push(candidates);
        }
        Ok(all)
    }

    /// Applies candidates to a state, and adds what they lead to.
    fn apply(
        &mut self,
        session: &mut dyn Session,
        state: usize,
        candidates: &[Candidate],
        new: &mut Vec<New>,
    ) -> Result<(), SearchError> {
        let limit = self.search.options.limits.tactics - self.result.tactics;
        let most = usize::try_from(limit).unwrap_or(usize::MAX).min(candidates.len());
        let tactics: Vec<Arc<str>> =
            candidates[..most].iter().map(|candidate| Arc::clone(&candidate.tactic)).collect();
        let id = self.result.graph.states()[state].id;
        let start = Instant::now();
        let applied = session.apply(id, &tactics, &self.control);
        self.timings.add(Stage::Environment, start.elapsed());
        let applied = applied?;
        if applied.len() != tactics.len() {
            let name = self.search.environment.name();
            return Err(broken(name, "answers", applied.len(), tactics.len()));
        }
        self.result.tactics += tactics.len() as u64;
        let verdicts = self.verify(state, &tactics, &applied)?;
        let before = self.result.graph.states()[state].steps.len();
        let mut verdicts = verdicts.into_iter();
        for (candidate, answer) in candidates.iter().zip(applied) {
            match answer {
                Applied::Refused(_) => self.result.graph.state_mut(state).refused += 1,
                Applied::Finished => self.finish(state, candidate, verdicts.next()),
                Applied::Open { state: id, text } => {
                    new.extend(self.reach(session, state, candidate, id, text)?);
                }
            }
        }
        if self.result.graph.states()[state].steps.len() == before {
            self.result.without_steps += 1;
        }
        // A state whose candidates were cut by the limit is not exhausted.
        if most == candidates.len() {
            self.result.graph.expand(state);
        }
        Ok(())
    }

    /// Adds a state that a candidate led to; its number, if it is new.
    fn reach(
        &mut self,
        session: &mut dyn Session,
        from: usize,
        candidate: &Candidate,
        id: StateId,
        text: Arc<str>,
    ) -> Result<Option<New>, SearchError> {
        if text.is_empty() {
            let name = self.search.environment.name();
            return Err(SearchError::Contract(format!(
                "{name}: the text of an open state is empty"
            )));
        }
        let found_ms = now_ms();
        let graph = &mut self.result.graph;
        let (state, is_new) = graph.reach(from, candidate.log_prob, text, id, found_ms);
        if state == from {
            graph.state_mut(from).refused += 1; // nothing was done
            session.dispose(id);
            return Ok(None);
        }
        let step = Step {
            tactic: Arc::clone(&candidate.tactic),
            log_prob: candidate.log_prob,
            target: Target::State(state),
            found_ms,
        };
        graph.connect(from, step);
        if !is_new {
            session.dispose(id);
        }
        Ok(is_new.then_some(state))
    }

    /// Verdicts for the candidates after which no goal is left.
    fn verify(
        &mut self,
        state: usize,
        tactics: &[Arc<str>],
        applied: &[Applied],
    ) -> Result<Vec<Verdict>, SearchError> {
        let last =
            tactics.iter().zip(applied).filter(|(_, applied)| **applied == Applied::Finished);
        let last: Vec<&Arc<str>> = last.map(|(tactic, _)| tactic).collect();
        if last.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.result.graph.tactics_to(state);
        let proof = |tactic: &&Arc<str>| [before.as_slice(), &[Arc::clone(tactic)]].concat();
        let proofs: Vec<Vec<Arc<str>>> = last.iter().map(proof).collect();
        let start = Instant::now();
        let verdicts = self.search.environment.verify(self.theorem, &proofs, &self.control);
        self.timings.add(Stage::Verification, start.elapsed());
        let verdicts = verdicts?;
        if verdicts.len() != proofs.len() {
            let name = self.search.environment.name();
            return Err(broken(name, "verdicts", verdicts.len(), proofs.len()));
        }
        Ok(verdicts)
    }

    /// Adds the end of a proof, if it is one.
    fn finish(&mut self, state: usize, candidate: &Candidate, verdict: Option<Verdict>) {
        let mut tactics = self.result.graph.tactics_to(state);
        tactics.push(Arc::clone(&candidate.tactic));
        if let Some(Verdict::Refused(reason)) = verdict {
            self.result.graph.state_mut(state).refused += 1;
            self.result.false_proofs.push(FalseProof { tactics, reason });
            return;
        }
        let step = Step {
            tactic: Arc::clone(&candidate.tactic),
            log_prob: candidate.log_prob,
            target: Target::Finished,
            found_ms: now_ms(),
        };
        self.result.graph.connect(state, step);
        let expansions = self.result.expansions();
        self.result.proof.get_or_insert(Proof { tactics, expansions });
    }

    /// Scores new states, if the ranking needs that.
    fn score(&mut self, new: &[New]) -> Result<(), SearchError> {
        let Some(scorer) = self.search.scorer else { return Ok(()) };
        if new.is_empty() || !self.search.options.ranking.needs_scores() {
            return Ok(());
        }
        let graph = &self.result.graph;
        let nodes: Vec<Node<'_>> =
            new.iter().map(|state| Node::Open(&graph.states()[*state].text)).collect();
        let start = Instant::now();
        let found = scorer.score(&self.theorem.name, &nodes, &self.control)?;
        let took = start.elapsed();
        self.timings.add(Stage::Encoder, found.encoding);
        self.timings.add(Stage::Scorer, took.saturating_sub(found.encoding));
        if found.scores.len() != new.len() {
            return Err(broken("scorer", "scores", found.scores.len(), new.len()));
        }
        for (state, score) in new.iter().zip(found.scores) {
            if let Score::Unscored(reason) = &score {
                self.result.unscored += 1;
                self.complain(format!("unscored: {reason}"));
            }
            self.result.graph.state_mut(*state).score = Some(score);
        }
        Ok(())
    }

    fn complain(&mut self, complaint: String) {
        if self.result.complaints.len() < COMPLAINTS {
            self.result.complaints.push(complaint);
        }
    }
}

fn broken(name: &str, what: &str, found: usize, wanted: usize) -> SearchError {
    SearchError::Contract(format!("{name}: {found} {what} for {wanted}"))
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
