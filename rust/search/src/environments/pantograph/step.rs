//! One tactic, and what its answer means.

use super::fault::{CallError, Fault};
use super::protocol::{GoalPrint, GoalStart, GoalTactic, Message, Printed, Started, TacticDone};
use super::text;
use super::worker::Worker;
use crate::environments::statement::Statement;
use crate::search::{Control, Theorem};
use crate::shown::harmless;

/// What a tactic did. States are numbered by the process.
#[derive(Debug)]
pub(super) enum Step {
    Open { id: u64, text: String },
    Finished { id: u64 },
    Refused(String),
}

/// Starts a theorem: its state and text, or why it cannot be started.
pub(super) fn start(
    worker: &mut Worker,
    theorem: &Theorem,
    control: &Control,
) -> Result<Result<(u64, String), String>, CallError> {
    let expr = theorem.statement.as_deref().map(|statement| Statement::split(statement).closed());
    let expr = expr.as_deref();
    let copy_from = if expr.is_some() { None } else { Some(theorem.name.as_str()) };
    let started = worker.ask("goal.start", &GoalStart { expr, copy_from }, control)?;
    let started: Started = match started {
        Ok(started) => started,
        Err(refusal) => return Ok(Err(format!("{} ({})", refusal.text, refusal.kind))),
    };
    let id = started.state_id;
    worker.made(id)?;
    let printed = print(worker, id, control)?;
    let goals = printed.goals.unwrap_or_default();
    if goals.is_empty() {
        return Ok(Err("it starts without a goal".to_owned()));
    }
    Ok(Ok((id, text::print(&goals))))
}

/// The goals and the root's term of a state.
pub(super) fn print(
    worker: &mut Worker,
    state_id: u64,
    control: &Control,
) -> Result<Printed, CallError> {
    let payload = GoalPrint { state_id, goals: true, root_expr: true };
    match worker.ask("goal.print", &payload, control)? {
        Ok(printed) => Ok(printed),
        Err(refusal) if refusal.kind == "index" => {
            Err(worker.broken(Fault::LostState(refusal.text)).into())
        }
        Err(refusal) => {
            let reason = format!("{} ({})", refusal.text, refusal.kind);
            Err(worker.broken(Fault::Protocol { command: "goal.print", reason }).into())
        }
    }
}

/// Applies a tactic. States that are of no use come to `leftovers`.
///
/// It finished the proof only if the list of goals is there and empty, the root's term holds no open
/// metavariable (a goal that sleeps is one), and neither `sorry` nor something unsafe was used.
pub(super) fn step(
    worker: &mut Worker,
    state_id: u64,
    tactic: &str,
    leftovers: &mut Vec<u64>,
    control: &Control,
) -> Result<Step, CallError> {
    let done: TacticDone =
        match worker.ask("goal.tactic", &GoalTactic { state_id, tactic }, control)? {
            Ok(done) => done,
            Err(refusal) if refusal.kind == "index" && refusal.text.contains("state index") => {
                return Err(worker.broken(Fault::LostState(refusal.text)).into());
            }
            Err(refusal) if refusal.kind == "io" && refusal.text == "interrupt" => {
                return Ok(Step::Refused(format!("not done within {:?}", worker.time())));
            }
            Err(refusal) => {
                return Ok(Step::Refused(format!("{} ({})", refusal.text, refusal.kind)));
            }
        };
    if let Some(id) = done.next_state_id {
        worker.made(id)?;
    }
    if let Some(reason) = refusal(&done) {
        leftovers.extend(done.next_state_id);
        return Ok(Step::Refused(reason));
    }
    match (done.next_state_id, done.goals) {
        (Some(id), Some(goals)) if goals.is_empty() => {
            let printed = print(worker, id, control)?;
            Ok(match not_closed(&printed) {
                None => Step::Finished { id },
                Some(reason) => {
                    leftovers.push(id);
                    Step::Refused(reason.to_owned())
                }
            })
        }
        (Some(id), Some(goals)) => Ok(Step::Open { id, text: text::print(&goals) }),
        (id, _) => {
            leftovers.extend(id);
            Ok(Step::Refused(messages(done.messages.as_deref().unwrap_or_default())))
        }
    }
}

/// Why an answer is a refusal whatever else it says.
fn refusal(done: &TacticDone) -> Option<String> {
    let errors = done.messages.iter().flatten().filter(|message| message.is_error());
    if let Some(error) = &done.parse_error {
        Some(error.clone())
    } else if done.has_sorry == Some(true) {
        Some("it uses sorry".to_owned())
    } else if done.has_unsafe == Some(true) {
        Some("it uses something unsafe".to_owned())
    } else {
        let errors: Vec<_> = errors.map(Message::text).collect();
        if errors.is_empty() { None } else { Some(harmless(&errors.join("\n"))) }
    }
}

/// Why a state without goals is no proof.
pub(super) fn not_closed(printed: &Printed) -> Option<&'static str> {
    // Each must be there: what is not said is not known.
    if printed.goals.as_ref().is_none_or(|goals| !goals.is_empty()) {
        Some("no goals are left, but the state has some")
    } else if printed.root_has_sorry != Some(false) {
        Some("no goals are left, but the proof uses sorry")
    } else if printed.root_has_unsafe != Some(false) {
        Some("no goals are left, but the proof uses something unsafe")
    } else if printed.root_has_mvar != Some(false) {
        Some("no goals are left, but parts of the proof are missing")
    } else {
        None
    }
}

fn messages(messages: &[Message]) -> String {
    if messages.is_empty() {
        return "neither goals nor a message".to_owned();
    }
    harmless(&messages.iter().map(Message::text).collect::<Vec<_>>().join("\n"))
}
