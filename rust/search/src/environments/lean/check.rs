//! Checks of whole proofs, and of Lean itself.

use std::sync::Arc;

use super::file::{End, File, run};
use super::guard::{self, indented};
use super::launch::at_start;
use super::messages::{Answer, axioms};
use super::unavailable;
use super::workers::{Block, Shared, failed, run_blocks};
use crate::environments::statement::Statement;
use crate::search::{Control, EnvironmentResult, Verdict};

/// Axioms of Lean itself, which any proof may use.
const AXIOMS: &[&str] = &["propext", "Classical.choice", "Quot.sound"];
/// The name under which a proof is checked.
const THEOREM: &str = "ebm_checked_theorem";
/// A theorem that rests on an axiom, and that axiom. They are declared before a proof; asked about them
/// behind it, Lean must still say so.
const CONTROL: [&str; 2] = ["ebm_control_theorem", "ebm_control_axiom"];

/// Checks one proof as a theorem in a file of its own, so that no other can help it.
pub(super) fn verify(
    shared: &Shared,
    statement: &Statement<'_>,
    tactics: &[Arc<str>],
    control: &Control,
) -> EnvironmentResult<Verdict> {
    if let Some(reason) = tactics.iter().find_map(|tactic| guard::tactic(tactic).err()) {
        return Ok(Verdict::Refused(reason));
    }
    verify_unguarded(shared, statement, tactics, control)
}

fn verify_unguarded(
    shared: &Shared,
    statement: &Statement<'_>,
    tactics: &[Arc<str>],
    control: &Control,
) -> EnvironmentResult<Verdict> {
    let mut file = File::new(&shared.lean.header);
    let [control_theorem, control_axiom] = CONTROL;
    file.push(&format!("axiom {control_axiom} : True"));
    file.push(&format!("theorem {control_theorem} : True := {control_axiom}"));
    file.push(&format!("theorem {THEOREM} {}", statement.signature()));
    file.push(":= by");
    for tactic in tactics {
        file.push(&indented(tactic));
    }
    let asked = file.push(&format!("#print axioms {THEOREM}"));
    let asked_control = file.push(&format!("#print axioms {control_theorem}"));
    file.mark();
    let mut limits = shared.limits();
    let tactics = u32::try_from(tactics.len()).unwrap_or(u32::MAX);
    limits.part = limits.part.saturating_mul(tactics.saturating_add(1));
    let ran = run(&shared.lean, &file, &limits, &|| shared.stopped(std::iter::once(control)))
        .map_err(|error| failed(format!("Lean cannot be run: {error}")))?;
    let refused = match ran.end {
        End::Stopped => {
            control.check()?;
            return Err(failed("it is closed"));
        }
        End::Hung => Some("Lean did not end".to_owned()),
        End::Died(said) => Some(said),
        End::Complete => None,
    };
    let messages = ran.header.iter().chain(ran.parts.iter().flatten());
    if let Some(error) = messages.clone().find(|message| message.is_error()) {
        return Ok(Verdict::Refused(error.data.clone()));
    }
    if let Some(reason) = refused {
        return Ok(Verdict::Refused(reason));
    }
    if let Some(message) = messages.clone().find(|message| message.is_sorry()) {
        return Ok(Verdict::Refused(message.data.clone()));
    }
    let listed = |line, theorem: &str| {
        let mut messages = messages.clone();
        messages
            .find(|message| message.pos.line == line && message.severity == "information")
            .and_then(|message| axioms(&message.data, theorem))
    };
    if listed(asked_control, control_theorem).as_deref() != Some(&[control_axiom]) {
        return Ok(Verdict::Refused(
            "the proof changes what Lean says of other theorems".to_owned(),
        ));
    }
    let Some(listed) = listed(asked, THEOREM) else {
        return Ok(Verdict::Refused("Lean does not say on which axioms it rests".to_owned()));
    };
    match listed.iter().find(|axiom| !AXIOMS.contains(axiom)) {
        Some(axiom) => Ok(Verdict::Refused(format!("it rests on the axiom {axiom}"))),
        None => Ok(Verdict::Proof),
    }
}

/// Asks Lean what is known, before it is believed: a header that hides errors makes everything a proof.
pub(super) fn self_test(shared: &Shared, control: &Control) -> EnvironmentResult<()> {
    let block = |signature: &str, tactic: &str| Block {
        signature: signature.into(),
        tactics: vec![tactic.into()],
    };
    let blocks = [
        block(": False", "skip"),
        block(": True", "exact True.intro"),
        block(": False", "exact ebm_unknown_name"),
        // Without `sorryAx` Lean is silent about these two.
        block(": False", "exact True.intro"),
        block(": False", "constructor"),
        block(": False", "exact sorryAx _ true"),
    ];
    let stop = || shared.stopped(std::iter::once(control));
    let refs: Vec<&Block> = blocks.iter().collect();
    let Some(answers) = run_blocks(shared, &refs, &stop).map_err(at_start).map_err(hint_import)?
    else {
        control.check()?;
        return Err(failed("it is closed"));
    };
    let [open, finished, wrong @ ..] = answers.as_slice() else {
        return Err(unavailable("Lean did not answer"));
    };
    let right = *open == Answer::Open("⊢ False".to_owned())
        && *finished == Answer::Finished
        && wrong.iter().all(|answer| matches!(answer, Answer::Refused(_)));
    if !right {
        return Err(hides(&format!("{answers:?}")));
    }
    let check = |statement: &str, tactic: &str| {
        verify_unguarded(shared, &Statement::split(statement), &[tactic.into()], control)
    };
    let (proof, hole) =
        (check("True", "exact True.intro")?, check("False", "exact sorryAx _ true")?);
    if proof != Verdict::Proof || hole == Verdict::Proof {
        return Err(hides(&format!("True: {proof:?}, sorry: {hole:?}")));
    }
    Ok(())
}

fn hides(found: &str) -> crate::search::EnvironmentError {
    unavailable(format!(
        "this Lean does not tell proofs from failures: {found}\nhint: a prelude must declare `sorryAx`, and \
         a header must not silence errors"
    ))
}

fn hint_import(error: crate::search::EnvironmentError) -> crate::search::EnvironmentError {
    match error {
        crate::search::EnvironmentError::Unavailable { environment, reason }
            if reason.contains("header has an error") =>
        {
            let hint = "hint: name a command whose Lean finds the imports, such as `lake env lean` in the \
                 project's folder, after `lake build` or `lake exe cache get`";
            crate::search::EnvironmentError::Unavailable {
                environment,
                reason: format!("{reason}\n{hint}"),
            }
        }
        other => other,
    }
}
