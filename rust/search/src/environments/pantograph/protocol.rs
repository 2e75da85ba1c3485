//! Requests and answers. What an answer lacks is `None`, as is `null`; what we do not know is ignored.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::options::Framing;

/// The bytes of a request, one line.
pub(super) fn request(framing: Framing, command: &str, payload: &impl Serialize) -> Vec<u8> {
    // Our payloads are structures of strings, numbers and lists, which are always JSON.
    let payload = json!(payload);
    let line = match framing {
        Framing::Command => format!("{command} {payload}\n"),
        Framing::Json => format!("{}\n", json!({"cmd": command, "payload": payload})),
    };
    line.into_bytes()
}

#[derive(Debug, Serialize)]
pub(super) struct Nothing {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "the protocol has them")]
pub(super) struct SetOptions {
    /// All goals stay in view, so that none is asleep where no goal is shown.
    pub automatic_mode: bool,
    /// Milliseconds for a tactic or a file.
    pub timeout: u64,
    pub print_json_pretty: bool,
    pub print_expr_pretty: bool,
    /// Without it, the constants of a term cannot be read.
    #[serde(rename = "printExprAST")]
    pub print_expr_ast: bool,
    pub no_repeat: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PrintedOptions {
    pub automatic_mode: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoalStart<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_from: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Started {
    pub state_id: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoalTactic<'a> {
    pub state_id: u64,
    pub tactic: &'a str,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TacticDone {
    pub next_state_id: Option<u64>,
    pub goals: Option<Vec<Goal>>,
    pub messages: Option<Vec<Message>>,
    pub parse_error: Option<String>,
    pub has_sorry: Option<bool>,
    pub has_unsafe: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub severity: Option<String>,
    pub data: Option<String>,
    pub kind: Option<String>,
}

impl Message {
    pub(super) fn is_error(&self) -> bool {
        self.severity.as_deref() == Some("error")
    }

    pub(super) fn text(&self) -> &str {
        self.data.as_deref().unwrap_or("a message without text")
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Goal {
    pub user_name: Option<String>,
    pub fragment: Option<String>,
    pub target: Expression,
    #[serde(default)]
    pub vars: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Variable {
    pub user_name: Option<String>,
    #[serde(rename = "type")]
    pub kind: Expression,
    pub value: Option<Expression>,
}

/// Required where it stands: a goal without its text would be another goal.
#[derive(Debug, Deserialize)]
pub(super) struct Expression {
    pub pp: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoalPrint {
    pub state_id: u64,
    pub goals: bool,
    pub root_expr: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Printed {
    pub goals: Option<Vec<Goal>>,
    pub root: Option<Root>,
    pub root_has_sorry: Option<bool>,
    pub root_has_unsafe: Option<bool>,
    #[serde(rename = "rootHasMVar")]
    pub root_has_mvar: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Root {
    pub sexp: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoalDelete<'a> {
    pub state_ids: &'a [u64],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "the protocol has them")]
pub(super) struct FrontendProcess<'a> {
    pub file: &'a str,
    pub read_header: bool,
    pub inherit_env: bool,
    pub new_constants: bool,
    /// Versions before 0.3.5 require these two.
    pub sorrys: bool,
    pub type_errors_as_goals: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Processed {
    pub units: Option<Vec<Unit>>,
}

/// A command of a file.
#[derive(Debug, Deserialize)]
pub(super) struct Unit {
    /// Byte offsets of its start and end.
    pub boundary: Option<(usize, usize)>,
    pub messages: Option<Vec<Message>>,
}

/// An answer that says why there is no other.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorAnswer {
    pub error: Option<String>,
    pub desc: Option<String>,
}
