//! Checks of whole proofs, and of Lean itself.

use std::sync::Arc;

use super::file::{End, File, REFUSED, Ran, Said, Stop};
use super::guard;
use super::messages::{Answer, Message, axioms};
use super::unavailable;
use super::workers::{Block, STATEMENT, Shared, TACTICS, block, failed, run_blocks};
use crate::environments::statement::Statement;
use crate::search::{Control, EnvironmentError, EnvironmentResult, Verdict};
use crate::shown::one_line;

/// Axioms of Lean itself, which any proof may use, with what they must say.
const AXIOMS: [(&str, &str); 3] = [
    ("propext", "∀ {a b : Prop}, Iff a b → @Eq Prop a b"),
    ("Classical.choice", "∀ {α : Sort ebm_u}, Nonempty α → α"),
    (
        "Quot.sound",
        "∀ {α : Sort ebm_u} {r : α → α → Prop} {a b : α}, r a b → \
         @Eq (@Quot α r) (@Quot.mk α r a) (@Quot.mk α r b)",
    ),
];

/// Names of one check: no text can know them beforehand.
struct Names {
    theorem: String,
    /// A theorem that rests on an axiom, and that axiom. They are declared before a proof; asked about them
    /// behind it, Lean must still say so.
    control_theorem: String,
    control_axiom: String,
}

impl Names {
    fn new() -> EnvironmentResult<Self> {
        Ok(Self { theorem: name()?, control_theorem: name()?, control_axiom: name()? })
    }
}

/// A name that nobody can guess.
fn name() -> EnvironmentResult<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| failed(format!("the system gives no random numbers: {error}")))?;
    Ok(format!("ebm_{:032x}", u128::from_ne_bytes(bytes)))
}

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
    verify_unguarded(shared, "", statement, tactics, control)
}

/// `declared` stands before the theorem.
fn verify_unguarded(
    shared: &Shared,
    declared: &str,
    statement: &Statement<'_>,
    tactics: &[Arc<str>],
    control: &Control,
) -> EnvironmentResult<Verdict> {
    let names = Names::new()?;
    let Names { theorem, control_theorem, control_axiom } = &names;
    let text = block(tactics);
    let mut file = File::new(&shared.lean.header);
    file.ask_bounds(shared.refused, STATEMENT, &statement.closed());
    file.mark(Stop::Fault);
    file.ask_bounds(shared.refused, TACTICS, &text);
    file.mark(Stop::Fault);
    file.push(declared);
    file.push(&format!("axiom {control_axiom} : True"));
    file.push(&format!("theorem {control_theorem} : True := {control_axiom}"));
    file.push(&format!("theorem {theorem} {}", statement.signature()));
    file.push(&format!(":= ({}", TACTICS[0]));
    file.push(&text);
    file.push(")");
    let asked = file.push(&format!("#print axioms {theorem}"));
    let asked_control = file.push(&format!("#print axioms {control_theorem}"));
    file.mark(Stop::Never);
    let mut limits = shared.limits();
    let tactics = u32::try_from(tactics.len()).unwrap_or(u32::MAX);
    limits.part = limits.part.saturating_mul(tactics.saturating_add(1));
    let ran = shared.run(&file, &limits, &|| shared.stopped(std::iter::once(control)))?;
    if ran.end == End::Stopped {
        return Err(closed(control));
    }
    let asked = [(asked, theorem), (asked_control, control_theorem)];
    Ok(match fault(&shared.axioms, ran, asked, control_axiom) {
        Some(reason) => Verdict::Refused(reason),
        None => Verdict::Proof,
    })
}

/// Why what Lean said of a whole proof does not make it one. `asked` are the lines in which Lean is asked for
/// axioms, and the theorems: that of the proof, and that which rests on `control_axiom`.
fn fault(
    allowed: &[&str],
    ran: Ran,
    asked: [(usize, &String); 2],
    control_axiom: &str,
) -> Option<String> {
    let unbound = ran.parts.iter().find_map(|said| said.fault.clone());
    if unbound.is_some() {
        return unbound;
    }
    let parts = ran.parts.iter().skip(2).flat_map(|said| &said.messages);
    let messages = ran.header.iter().chain(parts).chain(&ran.unfinished);
    if let Some(error) = messages.clone().find(|message| message.is_error()) {
        return Some(error.reason());
    }
    match ran.end {
        End::Complete => {}
        End::Died(said) => return Some(said),
        End::Hung | End::Stopped | End::Unbound => return Some("Lean did not end".to_owned()),
    }
    if let Some(message) = messages.clone().find(|message| message.is_sorry()) {
        return Some(message.reason());
    }
    let listed = |(line, theorem): (usize, &String)| {
        let mut messages = messages.clone();
        messages
            .find(|message| message.pos.line == line && message.severity == "information")
            .and_then(|message| axioms(&message.data, theorem))
    };
    let [own, control] = asked;
    if listed(control).as_deref() != Some(&[control_axiom]) {
        return Some("the proof changes what Lean says of other theorems".to_owned());
    }
    let Some(listed) = listed(own) else {
        return Some("Lean does not say on which axioms it rests".to_owned());
    };
    let other = listed.iter().find(|axiom| !allowed.contains(axiom))?;
    Some(format!("it rests on the axiom {other}"))
}

/// Asks Lean what is known, before it is believed: a header that hides errors makes everything a proof.
pub(super) fn self_test(shared: &mut Shared, control: &Control) -> EnvironmentResult<()> {
    shared.refused = how_to_ask(shared, control)?;
    shared.axioms = axioms_of_lean(shared, control)?;
    let block = |signature: &str, tactic: &str| Block {
        signature: signature.into(),
        tactics: vec![tactic.into()],
        statement: None,
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
    let Some(answers) = run_blocks(shared, &refs, &stop)? else {
        return Err(closed(control));
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
    let check = |declared: &str, statement: &str, tactic: &str| {
        let statement = Statement::split(statement);
        verify_unguarded(shared, declared, &statement, &[tactic.into()], control)
    };
    let proof = check("", "True", "exact True.intro")?;
    let hole = check("", "False", "exact sorryAx _ true")?;
    if proof != Verdict::Proof || hole == Verdict::Proof {
        return Err(hides(&format!("True: {proof:?}, sorry: {hole:?}")));
    }
    // Lean gives no warning of an axiom, so only the list of axioms can show this one.
    let (axiom, wrapper) = (name()?, name()?);
    let declared = format!("axiom {axiom} : False\ntheorem {wrapper} : False := {axiom}");
    let behind = check(&declared, "False", &format!("exact {wrapper}"))?;
    if behind != Verdict::Refused(format!("it rests on the axiom {axiom}")) {
        return Err(hides(&format!("a proof by the axiom {axiom}: {behind:?}")));
    }
    Ok(())
}

fn closed(control: &Control) -> EnvironmentError {
    match control.check() {
        Ok(()) => failed("it is closed"),
        Err(stop) => stop.into(),
    }
}

/// Runs a file of questions to this Lean; each must be answered.
fn ask(shared: &Shared, file: &File, parts: usize, control: &Control) -> EnvironmentResult<Ran> {
    let ran = shared.run(file, &shared.limits(), &|| shared.stopped(std::iter::once(control)))?;
    if let Some(error) = ran.header.iter().find(|message| message.is_error()) {
        return Err(hint_import(&one_line(&error.data)));
    }
    match &ran.end {
        End::Stopped => Err(closed(control)),
        End::Died(said) => Err(unavailable(said.clone())),
        End::Complete if ran.parts.len() == parts => Ok(ran),
        _ => Err(unavailable("Lean did not answer in time")),
    }
}

/// How this Lean is asked where a text ends: so that it tells a text that ends early from one that does not.
fn how_to_ask(shared: &Shared, control: &Control) -> EnvironmentResult<&'static str> {
    let mut file = File::new(&shared.lean.header);
    for refused in REFUSED {
        for text in ["  skip", "  skip)\nexample : Prop := (Prop"] {
            file.ask_bounds(refused, TACTICS, text);
            file.mark(Stop::Never);
        }
    }
    let ran = ask(shared, &file, 2 * REFUSED.len(), control)?;
    let tells = |pair: &[Said]| pair[0].fault.is_none() && pair[1].fault.is_some();
    let mut asked = REFUSED.into_iter().zip(ran.parts.chunks(2));
    let found = asked.find(|(_, pair)| tells(pair)).map(|(refused, _)| refused);
    found.ok_or_else(|| {
        unavailable(
            "this Lean does not say where a command ends, so that no proof can be trusted\nhint: only a \
             Lean 4 whose `--json` messages have `endPos` can be used",
        )
    })
}

/// Which axioms are Lean's own here. A name says nothing: a header may declare `axiom propext : False`.
fn axioms_of_lean(shared: &Shared, control: &Control) -> EnvironmentResult<Vec<&'static str>> {
    let mut file = File::new(&shared.lean.header);
    for (axiom, says) in AXIOMS {
        file.push(&format!("section\nuniverse ebm_u\n#check (@{axiom} : {says})\nend"));
        file.mark(Stop::Never);
    }
    let ran = ask(shared, &file, AXIOMS.len(), control)?;
    let is_right = |said: &Said| {
        let answered = said.messages.iter().any(|message| message.severity == "information");
        answered && !said.messages.iter().any(Message::is_error)
    };
    let known = AXIOMS.into_iter().zip(&ran.parts).filter(|(_, said)| is_right(said));
    Ok(known.map(|((axiom, _), _)| axiom).collect())
}

fn hides(found: &str) -> EnvironmentError {
    unavailable(format!(
        "this Lean does not tell proofs from failures: {found}\nhint: a prelude must declare `sorryAx`, and \
         a header must not silence errors"
    ))
}

fn hint_import(error: &str) -> EnvironmentError {
    unavailable(format!(
        "the header has an error: {error}\nhint: name a command whose Lean finds the imports, such as \
         `lake env lean` in the project's folder, after `lake build` or `lake exe cache get`"
    ))
}
