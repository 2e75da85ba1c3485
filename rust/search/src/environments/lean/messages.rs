//! What Lean says of a file, one JSON object a line.

use serde::Deserialize;

use crate::shown::harmless;

/// A message of `lean --json`. Lean writes more fields than these.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) severity: String,
    pub(super) pos: Position,
    /// Absent where Lean knows only where something starts.
    #[serde(default, rename = "endPos")]
    pub(super) end: Option<Position>,
    pub(super) data: String,
}

/// Where it is about; lines count from 1, columns from 0 in characters.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Message {
    /// A line of Lean's output; `None` if it is something else, printed by a tactic or a tool around Lean.
    pub(super) fn parse(line: &str) -> Option<Self> {
        line.starts_with('{').then(|| serde_json::from_str(line).ok())?
    }

    /// What it says, as the reason of a refusal.
    pub(super) fn reason(&self) -> String {
        harmless(&self.data)
    }

    pub(super) fn is_error(&self) -> bool {
        self.severity == "error"
    }

    /// Whether it says that a declaration has a hole.
    pub(super) fn is_sorry(&self) -> bool {
        !self.is_error() && self.data.starts_with("declaration uses") && self.data.contains("sorry")
    }
}

/// What a block of tactics did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Goals are left, in Lean's print.
    Open(String),
    /// No goal is left, and nothing is wrong.
    Finished,
    /// Lean refuses it, with Lean's message.
    Refused(String),
}

/// What stands before the goals in Lean's message.
const UNSOLVED: &str = "unsolved goals\n";

/// Reads the messages of one block, whose `by` is in the line `by_line`.
///
/// Only the block's own `by` may have goals left: one inside a tactic is an error of that tactic.
pub(super) fn read_block(messages: &[Message], by_line: usize) -> Answer {
    let errors: Vec<&Message> = messages.iter().filter(|message| message.is_error()).collect();
    let goals = |message: &Message| {
        let own = message.pos.line == by_line;
        own.then(|| message.data.strip_prefix(UNSOLVED).map(str::to_owned)).flatten()
    };
    match errors.as_slice() {
        [] => match messages.iter().find(|message| message.is_sorry()) {
            Some(message) => Answer::Refused(message.reason()),
            None => Answer::Finished,
        },
        [error] => goals(error).map_or_else(|| Answer::Refused(error.reason()), Answer::Open),
        [first, second, ..] => {
            let error = if goals(first).is_some() { second } else { first };
            Answer::Refused(error.reason())
        }
    }
}

/// The axioms in the answer to `#print axioms NAME`; `None` if it is not that answer.
pub(super) fn axioms<'a>(data: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let rest = data.trim().strip_prefix('\'')?.strip_prefix(name)?.strip_prefix('\'')?.trim_start();
    if rest == "does not depend on any axioms" {
        return Some(Vec::new());
    }
    let list = rest.strip_prefix("depends on axioms:")?.trim_start();
    let list = list.strip_prefix('[')?.strip_suffix(']')?;
    Some(list.split(',').map(str::trim).filter(|axiom| !axiom.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(severity: &str, line: usize, data: &str) -> Message {
        let pos = Position { line, column: 0 };
        Message { severity: severity.to_owned(), pos, end: None, data: data.to_owned() }
    }

    #[test]
    fn a_line_of_lean_is_read_and_others_are_not() {
        let line = r#"{"caption":"","data":"Unknown identifier `x`","endPos":{"column":35,"line":3},
            "fileName":"B.lean","isSilent":false,"keepFullRange":false,"kind":"k",
            "pos":{"column":27,"line":3},"severity":"error"}"#;
        let mut wanted = message("error", 3, "Unknown identifier `x`");
        wanted.pos.column = 27;
        wanted.end = Some(Position { line: 3, column: 35 });
        assert_eq!(Message::parse(&line.replace('\n', "")), Some(wanted));
        assert_eq!(Message::parse("{ not JSON"), None);
        assert_eq!(Message::parse("PANIC at foo"), None);
        assert_eq!(Message::parse("{\"severity\": \"error\"}"), None);
    }

    #[test]
    fn blocks_are_open_finished_or_refused() {
        let open = message("error", 7, "unsolved goals\n⊢ p");
        let wrong = message("error", 8, "no");
        let sorry = message("warning", 6, "declaration uses `sorry`");
        let note = message("information", 8, "a note");
        assert_eq!(read_block(std::slice::from_ref(&open), 7), Answer::Open("⊢ p".to_owned()));
        assert_eq!(read_block(&[note.clone(), open.clone()], 7), Answer::Open("⊢ p".to_owned()));
        assert_eq!(read_block(&[], 7), Answer::Finished);
        assert_eq!(read_block(&[note], 7), Answer::Finished);
        let hole = Answer::Refused(sorry.data.clone());
        assert_eq!(read_block(&[sorry], 7), hole);
        // Goals left inside a tactic, and errors beside goals, are no state.
        assert_eq!(read_block(std::slice::from_ref(&open), 6), Answer::Refused(open.data.clone()));
        assert_eq!(read_block(&[wrong.clone(), open.clone()], 7), Answer::Refused("no".to_owned()));
        assert_eq!(read_block(&[open, wrong], 7), Answer::Refused("no".to_owned()));
    }

    #[test]
    fn axioms_are_listed() {
        assert_eq!(axioms("'t' does not depend on any axioms", "t"), Some(vec![]));
        let listed = axioms("'t' depends on axioms: [propext,\n Classical.choice]\n", "t");
        assert_eq!(listed, Some(vec!["propext", "Classical.choice"]));
        assert_eq!(axioms("'s' does not depend on any axioms", "t"), None);
        assert_eq!(axioms("'t' depends on axioms: [propext", "t"), None);
        assert_eq!(axioms("", "t"), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_skipped(line in "\\PC{0,40}", data in "\\PC{0,40}") {
            let _ = Message::parse(&line);
            let _ = axioms(&data, "t");
            let json = serde_json::json!({"severity": "error", "pos": {"line": 1, "column": 0}, "data": data});
            let parsed = Message::parse(&json.to_string());
            prop_assert_eq!(parsed, Some(message("error", 1, &data)));
        }
    }
}
