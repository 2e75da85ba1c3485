//! `frontend.process`: a theorem by tactics, and the command that prints its axioms.

use serde_json::{Value, json};

use super::lean::{Lean, Theorem};
use super::repl::message;

/// The first words of commands.
const COMMANDS: [&str; 5] = ["theorem ", "#print ", "axiom ", "macro ", "end"];

pub(crate) fn process(lean: &Lean, text: &str, silent: bool) -> Value {
    let mut proved = Proved::default();
    let mut units = Vec::new();
    for (start, command) in commands(text) {
        let messages = match command.split_once(' ') {
            Some(("theorem", rest)) => theorem(lean, rest, &mut proved),
            Some(("#print", rest)) => vec![print_axioms(rest, &proved)],
            _ => Vec::new(),
        };
        let messages = if silent { Vec::new() } else { messages };
        units.push(json!({"boundary": [start, start + command.len()], "messages": messages}));
    }
    json!({"units": units})
}

#[derive(Default)]
struct Proved {
    name: String,
    axioms: Vec<String>,
}

/// Commands begin at the start of a line, or indented as if they were tactics.
fn commands(text: &str) -> Vec<(usize, &str)> {
    let mut starts = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        if COMMANDS.iter().any(|command| trimmed.starts_with(command)) {
            starts.push(at + line.len() - trimmed.len());
        }
        at += line.len();
    }
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| (start, &text[start..end])).collect()
}

fn theorem(lean: &Lean, text: &str, proved: &mut Proved) -> Vec<Value> {
    let parts = text.split_once(" : ").and_then(|(name, rest)| {
        let (kind, tactics) = rest.split_once(" := by\n")?;
        Some((name, kind, tactics))
    });
    let Some((name, kind, tactics)) = parts else {
        return vec![message("error", "unexpected token; expected ':='")];
    };
    name.clone_into(&mut proved.name);
    let known = match kind.strip_prefix("type_of% @") {
        Some(other) => lean.by_name(other),
        None => lean.by_type(kind),
    };
    match known {
        Some(known) => tactics_of(known, tactics, proved),
        None => vec![message("error", &format!("cannot read {kind}"))],
    }
}

fn tactics_of(theorem: &Theorem, text: &str, proved: &mut Proved) -> Vec<Value> {
    let (mut at, mut messages) = (0, Vec::new());
    for step in theorem.steps(at, text) {
        let Some(to) = step.to else {
            messages.push(message("error", step.refused.as_deref().unwrap_or("tactic failed")));
            return messages;
        };
        at = to;
        messages.extend(step.file_error.iter().map(|text| message("error", text)));
        messages.extend(step.file_warning.iter().map(|text| message("warning", text)));
        if step.has_sorry {
            messages.push(message("warning", "declaration uses 'sorry'"));
            proved.axioms.push("sorryAx".to_owned());
        }
        proved.axioms.extend_from_slice(&step.axioms);
    }
    if !theorem.goals(at).is_empty() {
        messages.push(message("error", "unsolved goals"));
    }
    messages
}

fn print_axioms(text: &str, proved: &Proved) -> Value {
    let Some(name) = text.trim().strip_prefix("axioms ").filter(|name| **name == proved.name)
    else {
        return message("error", "unknown constant");
    };
    if proved.axioms.is_empty() {
        return message("info", &format!("'{name}' does not depend on any axioms"));
    }
    message("info", &format!("'{name}' depends on axioms: [{}]", proved.axioms.join(", ")))
}
