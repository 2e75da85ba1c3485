//! The recorded Lean: theorems, their states, and what each tactic does.

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(crate) struct Lean {
    pub(crate) theorems: Vec<Theorem>,
}

#[derive(Deserialize)]
pub(crate) struct Theorem {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    states: Vec<Vec<Goal>>,
    steps: Vec<Step>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Goal {
    user_name: Option<String>,
    vars: Vec<Variable>,
    target: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Variable {
    user_name: String,
    #[serde(rename = "type")]
    kind: String,
    value: Option<String>,
}

/// What a tactic does to a state. Without `to`, it is refused.
#[derive(Deserialize, Clone, Default)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a way to be no proof")]
pub(crate) struct Step {
    from: usize,
    tactic: String,
    pub(crate) to: Option<usize>,
    pub(crate) refused: Option<String>,
    pub(crate) parse_error: Option<String>,
    /// Succeeds, with a message of severity error beside the goals.
    pub(crate) error_message: Option<String>,
    pub(crate) has_sorry: bool,
    pub(crate) has_unsafe: bool,
    /// Seen only in the root's term.
    pub(crate) root_has_sorry: bool,
    #[serde(rename = "rootHasMVar")]
    pub(crate) root_has_mvar: bool,
    /// What Lean says to it in a file.
    pub(crate) file_error: Option<String>,
    pub(crate) file_warning: Option<String>,
    pub(crate) axioms: Vec<String>,
    /// Constants of its term.
    pub(crate) constants: Vec<String>,
}

impl Lean {
    pub(crate) fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        Ok(serde_json::from_reader(BufReader::new(File::open(path)?))?)
    }

    pub(crate) fn by_type(&self, kind: &str) -> Option<&Theorem> {
        self.theorems.iter().find(|theorem| theorem.kind == kind)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Theorem> {
        self.theorems.iter().find(|theorem| theorem.name == name)
    }
}

impl Theorem {
    pub(crate) fn goals(&self, state: usize) -> &[Goal] {
        &self.states[state]
    }

    /// The steps of a text, which may be a sequence of tactics.
    pub(crate) fn steps(&self, from: usize, text: &str) -> Vec<Step> {
        if let Some(step) = self.step(from, text) {
            return vec![step];
        }
        let (mut at, mut steps) = (from, Vec::new());
        for tactic in text.split(['\n', ';']).map(str::trim).filter(|tactic| !tactic.is_empty()) {
            let refused = format!("Tactic `{tactic}` failed");
            let step = self.step(at, tactic);
            let step = step.unwrap_or_else(|| Step { refused: Some(refused), ..Step::default() });
            at = step.to.unwrap_or(at);
            let failed = step.to.is_none();
            steps.push(step);
            if failed {
                break;
            }
        }
        if steps.is_empty() {
            let parse_error = Some("<input>:1:0: unexpected end of input".to_owned());
            steps.push(Step { parse_error, ..Step::default() });
        }
        steps
    }

    fn step(&self, from: usize, tactic: &str) -> Option<Step> {
        let recorded =
            self.steps.iter().find(|step| step.from == from && step.tactic == tactic).cloned();
        if recorded.is_some() {
            return recorded;
        }
        match tactic {
            // Closes whatever the goal is; of several, all, which is enough of Lean here.
            "sorry" | "admit" => {
                let to = self.states.iter().position(Vec::is_empty);
                Some(Step { to, has_sorry: true, ..Step::default() })
            }
            // A bullet closes the first goal, or fails.
            _ => {
                let step = self.step(from, tactic.strip_prefix("· ")?)?;
                let goals = |state: usize| self.states[state].len();
                let closes = step.to.is_some_and(|to| goals(to) < goals(from));
                let refused = Some("unsolved goals".to_owned());
                Some(if closes { step } else { Step { refused, ..Step::default() } })
            }
        }
    }
}

impl Goal {
    /// As in an answer. `number` makes its name.
    pub(crate) fn to_json(&self, number: usize) -> Value {
        let vars: Vec<_> = self.vars.iter().map(Variable::to_json).collect();
        let mut goal = json!({
            "name": format!("_uniq.{number}"), "fragment": "tactic",
            "target": {"pp": self.target}, "vars": vars,
        });
        if let Some(name) = &self.user_name {
            goal["userName"] = json!(name);
        }
        goal
    }
}

impl Variable {
    fn to_json(&self) -> Value {
        let mut variable = json!({
            "name": "_uniq.1", "userName": self.user_name, "type": {"pp": self.kind},
            "isInaccessible": self.user_name.contains('✝'),
        });
        if let Some(value) = &self.value {
            variable["value"] = json!({"pp": value});
        }
        variable
    }
}
