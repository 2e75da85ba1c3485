//! Checks of whole proofs.

use std::fmt::Write;
use std::sync::Arc;

use super::fault::{CallError, Fault, failed};
use super::pool::Lease;
use super::protocol::{FrontendProcess, Message, Processed, Unit};
use super::step::{Step, not_closed, print, start, step};
use super::worker::Worker;
use crate::environments::statement::Statement;
use crate::search::{Control, EnvironmentError, EnvironmentResult, Theorem, Verdict};
use crate::shown::harmless;

/// What the theorem is called in its file: a name that no library has, since the theorem's own may be
/// taken.
const CHECKED: &str = "ebm_search_checked_proof";

/// The axioms of Lean. Each other, that of `sorry` among them, is an assumption of its own.
const AXIOMS: [&str; 3] = ["propext", "Classical.choice", "Quot.sound"];

/// Checks proofs in a process in which no search was.
pub(super) fn verdicts(
    lease: &mut Lease<'_>,
    theorem: &Theorem,
    proofs: &[Vec<Arc<str>>],
    control: &Control,
) -> EnvironmentResult<Vec<Verdict>> {
    proofs.iter().map(|proof| verdict(lease, theorem, proof, control)).collect()
}

fn verdict(
    lease: &mut Lease<'_>,
    theorem: &Theorem,
    proof: &[Arc<str>],
    control: &Control,
) -> EnvironmentResult<Verdict> {
    let mut first = true;
    loop {
        let (worker, _) = lease.worker(control)?;
        return match check(worker, theorem, proof, control) {
            Ok(None) => Ok(Verdict::Proof),
            Ok(Some(reason)) => Ok(Verdict::Refused(reason)),
            Err(CallError::Stopped(stop)) => Err(EnvironmentError::Stopped(stop)),
            Err(CallError::Fault(fault @ Fault::Protocol { .. })) => Err(failed(fault.to_string())),
            Err(CallError::Fault(_)) if first => {
                first = false;
                continue;
            }
            Err(CallError::Fault(fault)) => {
                Ok(Verdict::Refused(format!("its check killed the process twice: {fault}")))
            }
        };
    }
}

/// Why it is no proof.
fn check(
    worker: &mut Worker,
    theorem: &Theorem,
    proof: &[Arc<str>],
    control: &Control,
) -> Result<Option<String>, CallError> {
    worker.reset(control)?;
    if let Some(reason) = replay(worker, theorem, proof, control)? {
        return Ok(Some(reason));
    }
    let (file, end) = file(theorem, proof);
    let payload = FrontendProcess {
        file: &file,
        read_header: false,
        inherit_env: false,
        new_constants: false,
        sorrys: false,
        type_errors_as_goals: false,
    };
    let reason = match worker.ask::<Processed>("frontend.process", &payload, control)? {
        Err(refusal) => Some(format!("{} ({})", refusal.text, refusal.kind)),
        Ok(processed) => fault_of_file(processed.units.as_deref().unwrap_or_default(), end),
    };
    Ok(reason.map(|reason| format!("as a whole file: {reason}")))
}

fn replay(
    worker: &mut Worker,
    theorem: &Theorem,
    proof: &[Arc<str>],
    control: &Control,
) -> Result<Option<String>, CallError> {
    let mut at = match start(worker, theorem, control)? {
        Ok((id, _)) => id,
        Err(reason) => return Ok(Some(reason)),
    };
    let mut leftovers = Vec::new();
    for (number, tactic) in (1..).zip(proof) {
        let last = number == proof.len();
        at = match step(worker, at, tactic, &mut leftovers, control)? {
            Step::Open { id, .. } if !last => id,
            Step::Finished { id } if last => id,
            Step::Open { .. } => return Ok(Some("it leaves goals".to_owned())),
            Step::Finished { .. } => {
                let rest = proof.len() - number;
                return Ok(Some(format!("{rest} tactics follow after its last goal")));
            }
            Step::Refused(reason) => return Ok(Some(format!("tactic {number}: {reason}"))),
        };
    }
    let own_name = theorem.statement.is_none();
    if own_name {
        // The library holds this theorem, so that it would prove itself.
        worker.configure(control, true)?;
    }
    let printed = print(worker, at, control)?;
    if own_name {
        worker.configure(control, false)?;
    }
    if let Some(reason) = not_closed(&printed) {
        return Ok(Some(reason.to_owned()));
    }
    if own_name {
        let Some(tree) = printed.root.and_then(|root| root.sexp) else {
            return Ok(Some(
                "its term was not printed, and might use the theorem itself".to_owned(),
            ));
        };
        if tree.contains(&format!("(:c {})", theorem.name)) {
            return Ok(Some("it uses the theorem itself".to_owned()));
        }
    }
    Ok(None)
}

/// The file of a proof, and where its theorem ends.
fn file(theorem: &Theorem, proof: &[Arc<str>]) -> (String, usize) {
    let kind = match &theorem.statement {
        Some(statement) => Statement::split(statement).closed(),
        None => format!("type_of% @{}", theorem.name),
    };
    let mut file = format!("theorem {CHECKED} : {kind} := by\n");
    for line in proof.iter().flat_map(|tactic| tactic.lines()) {
        let _ = writeln!(file, "  {line}");
    }
    let end = file.len();
    let _ = writeln!(file, "#print axioms {CHECKED}");
    (file, end)
}

/// Why the commands of a file are no proof; `end` is where the theorem ends.
fn fault_of_file(units: &[Unit], end: usize) -> Option<String> {
    let mut axioms = None;
    for unit in units {
        let Some((start, _)) = unit.boundary else {
            return Some("a command without a place".to_owned());
        };
        if start > 0 && start < end {
            // It could give another meaning to the command that prints the axioms.
            return Some("a tactic ends the proof and starts another command".to_owned());
        }
        for message in unit.messages.iter().flatten() {
            if let Some(reason) = fault_of_message(message) {
                return Some(reason);
            }
            if start >= end {
                axioms = axioms.or_else(|| read_axioms(message.text()));
            }
        }
    }
    let Some(axioms) = axioms else {
        return Some("Lean did not say on which axioms it depends".to_owned());
    };
    let other: Vec<_> = axioms.into_iter().filter(|name| !AXIOMS.contains(&&**name)).collect();
    if other.is_empty() { None } else { Some(format!("it depends on {}", other.join(", "))) }
}

fn fault_of_message(message: &Message) -> Option<String> {
    let text = message.text();
    let sorry = message.kind.as_deref() == Some("hasSorry")
        || text.starts_with("declaration uses") && text.contains("sorry");
    (message.is_error() || sorry).then(|| harmless(text))
}

/// The axioms of the message of `#print axioms`.
fn read_axioms(text: &str) -> Option<Vec<String>> {
    let said = text.trim().strip_prefix(&format!("'{CHECKED}' "))?;
    if said == "does not depend on any axioms" {
        return Some(Vec::new());
    }
    let list = said.strip_prefix("depends on axioms:")?.trim();
    let list = list.strip_prefix('[')?.strip_suffix(']')?;
    Some(list.split(',').map(|name| name.trim().to_owned()).collect())
}
