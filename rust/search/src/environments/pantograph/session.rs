//! The states of one theorem.

use std::sync::Arc;

use super::fault::{CallError, Fault, failed};
use super::pool::Lease;
use super::protocol::GoalDelete;
use super::step::{Step, start, step};
use super::worker::{Empty, Worker};
use crate::search::{
    Applied, Control, EnvironmentError, EnvironmentResult, Session, StateId, Stop, Theorem,
};

/// States that are deleted by one request.
const DELETED_AT_ONCE: usize = 64;

/// How often a tactic may end its process.
const KILLS: usize = 2;

/// How often the way to a state may end its process.
const LOSSES: usize = 3;

pub(super) struct PantographSession<'a> {
    lease: Lease<'a>,
    theorem: &'a Theorem,
    /// All states ever made, by their number.
    states: Vec<State>,
    /// States of the process that are of no use.
    leftovers: Vec<u64>,
}

struct State {
    /// Where it comes from; the root has none.
    origin: Option<(usize, Arc<str>)>,
    /// `None` once it was disposed. It may still be on the way to others.
    text: Option<Arc<str>>,
    /// Its number in the present process, if it is there.
    place: Option<u64>,
}

/// Why a tactic was not tried.
enum Broken {
    /// The process was lost on the way to the state.
    Way(Fault),
    /// The process was lost at the tactic.
    Tactic(Fault),
    /// The state is not what it was.
    Changed(String),
    Environment(EnvironmentError),
}

impl From<EnvironmentError> for Broken {
    fn from(error: EnvironmentError) -> Self {
        Self::Environment(error)
    }
}

impl From<Stop> for Broken {
    fn from(stop: Stop) -> Self {
        Self::Environment(stop.into())
    }
}

/// Sorts an error: that of Pantograph's protocol concerns all tactics.
fn sort(error: CallError, lost: impl FnOnce(Fault) -> Broken) -> Broken {
    match error {
        CallError::Stopped(stop) => stop.into(),
        CallError::Fault(fault @ Fault::Protocol { .. }) => failed(fault.to_string()).into(),
        CallError::Fault(fault) => lost(fault),
    }
}

impl<'a> PantographSession<'a> {
    pub(super) fn start(
        mut lease: Lease<'a>,
        theorem: &'a Theorem,
        control: &Control,
    ) -> EnvironmentResult<(Self, Arc<str>)> {
        let mut kills = 0;
        let (id, text) = loop {
            let (worker, _) = lease.worker(control)?;
            match start(worker, theorem, control) {
                Ok(Ok(started)) => break started,
                Ok(Err(reason)) => return Err(refused(theorem, reason)),
                Err(error) => match sort(error, Broken::Tactic) {
                    Broken::Environment(error) => return Err(error),
                    Broken::Way(fault) | Broken::Tactic(fault) => {
                        kills += 1;
                        if kills == KILLS {
                            let reason = format!("its start killed the process twice: {fault}");
                            return Err(refused(theorem, reason));
                        }
                    }
                    Broken::Changed(reason) => return Err(failed(reason)),
                },
            }
        };
        let text: Arc<str> = text.into();
        let root = State { origin: None, text: Some(Arc::clone(&text)), place: Some(id) };
        Ok((Self { lease, theorem, states: vec![root], leftovers: Vec::new() }, text))
    }

    fn apply_one(
        &mut self,
        state: usize,
        tactic: &Arc<str>,
        control: &Control,
    ) -> EnvironmentResult<Applied> {
        let (mut kills, mut losses) = (0, 0);
        loop {
            match self.attempt(state, tactic, control) {
                Ok(applied) => return Ok(applied),
                Err(Broken::Tactic(fault)) => {
                    kills += 1;
                    if kills == KILLS {
                        let reason = format!("the tactic killed the process twice: {fault}");
                        return Ok(Applied::Refused(reason));
                    }
                }
                Err(Broken::Way(fault)) => {
                    losses += 1;
                    if losses == LOSSES {
                        return Err(failed(format!(
                            "the process was lost {LOSSES} times: {fault}"
                        )));
                    }
                }
                Err(Broken::Changed(reason)) => return Ok(Applied::Refused(reason)),
                Err(Broken::Environment(error)) => return Err(error),
            }
        }
    }

    fn attempt(
        &mut self,
        state: usize,
        tactic: &Arc<str>,
        control: &Control,
    ) -> Result<Applied, Broken> {
        let place = self.place(state, control)?;
        let (worker, _) = self.lease.worker(control)?;
        let done = step(worker, place, tactic, &mut self.leftovers, control);
        Ok(match done.map_err(|error| sort(error, Broken::Tactic))? {
            Step::Refused(reason) => Applied::Refused(reason),
            Step::Finished { id } => {
                self.leftovers.push(id);
                Applied::Finished
            }
            Step::Open { id, text } => {
                let text: Arc<str> = text.into();
                let number = self.states.len() as u64;
                let origin = Some((state, Arc::clone(tactic)));
                self.states.push(State { origin, text: Some(Arc::clone(&text)), place: Some(id) });
                Applied::Open { state: StateId(number), text }
            }
        })
    }

    /// The number of a state in the present process, to which it is brought back if it is not there.
    fn place(&mut self, state: usize, control: &Control) -> Result<u64, Broken> {
        let (_, renewed) = self.lease.worker(control)?;
        if renewed {
            self.leftovers.clear();
            for state in &mut self.states {
                state.place = None;
            }
        }
        self.delete_leftovers(control)?;
        // The way from the nearest state that is there, or from the root.
        let (mut at, mut way) = (state, vec![state]);
        while self.states[at].place.is_none()
            && let Some((parent, _)) = self.states[at].origin
        {
            at = parent;
            way.push(at);
        }
        let mut place = 0;
        for at in way.into_iter().rev() {
            place = match self.states[at].place {
                Some(place) => place,
                None => self.bring_back(at, place, control)?,
            };
        }
        Ok(place)
    }

    /// Makes a state again, from its parent's place.
    fn bring_back(&mut self, at: usize, parent: u64, control: &Control) -> Result<u64, Broken> {
        let (worker, _) = self.lease.worker(control)?;
        let state = &mut self.states[at];
        let made = match &state.origin {
            None => start(worker, self.theorem, control),
            Some((_, tactic)) => match step(worker, parent, tactic, &mut self.leftovers, control) {
                Ok(Step::Open { id, text }) => Ok(Ok((id, text))),
                Ok(Step::Finished { .. }) => Ok(Err("its tactic left no goals".to_owned())),
                Ok(Step::Refused(reason)) => Ok(Err(reason)),
                Err(error) => Err(error),
            },
        };
        let (id, text) = match made.map_err(|error| sort(error, Broken::Way))? {
            Ok(made) => made,
            Err(reason) => return Err(changed(&reason)),
        };
        match &state.text {
            Some(known) if **known == *text => state.place = Some(id),
            Some(_) => {
                self.leftovers.push(id);
                return Err(changed("its goals are others"));
            }
            None => self.leftovers.push(id),
        }
        Ok(id)
    }

    fn delete_leftovers(&mut self, control: &Control) -> Result<(), Broken> {
        while self.leftovers.len() >= DELETED_AT_ONCE {
            let (worker, _) = self.lease.worker(control)?;
            delete(worker, &self.leftovers, control).map_err(|error| sort(error, Broken::Way))?;
            self.leftovers.clear();
        }
        Ok(())
    }
}

fn delete(worker: &mut Worker, state_ids: &[u64], control: &Control) -> Result<(), CallError> {
    let _: Empty = worker.must("goal.delete", &GoalDelete { state_ids }, control)?;
    Ok(())
}

fn refused(theorem: &Theorem, reason: String) -> EnvironmentError {
    EnvironmentError::Theorem { theorem: theorem.name.clone(), reason }
}

fn changed(reason: &str) -> Broken {
    Broken::Changed(format!(
        "the state could not be brought back after its process was lost: {reason}"
    ))
}

impl Session for PantographSession<'_> {
    fn apply(
        &mut self,
        state: StateId,
        tactics: &[Arc<str>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Applied>> {
        let number = usize::try_from(state.0).unwrap_or(usize::MAX);
        if self.states.get(number).is_none_or(|state| state.text.is_none()) {
            return Err(failed(format!("state {} is unknown, or was disposed", state.0)));
        }
        tactics.iter().map(|tactic| self.apply_one(number, tactic, control)).collect()
    }

    fn dispose(&mut self, state: StateId) {
        let number = usize::try_from(state.0).unwrap_or(usize::MAX);
        if let Some(state) = self.states.get_mut(number) {
            state.text = None;
            self.leftovers.extend(state.place.take());
        }
    }
}
