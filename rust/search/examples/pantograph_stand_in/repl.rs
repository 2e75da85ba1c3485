//! The REPL: requests, states, answers.

use std::collections::HashMap;
use std::error::Error;
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::file;
use super::lean::{Goal, Lean, Step, Theorem};
use super::switches::{Fault, Switches};

pub(crate) enum Reaction {
    Answer(Value),
    /// As it is.
    Text(String),
    /// Half of the answer, then death.
    Torn(Value),
    Die,
    End,
    Hang,
}

pub(crate) struct Repl<'a> {
    switches: &'a Switches,
    lean: Lean,
    options: Map<String, Value>,
    next: u64,
    states: HashMap<u64, State>,
}

/// A state of a theorem; of its goals, `shown` are awake.
#[derive(Clone, Default)]
struct State {
    theorem: usize,
    at: usize,
    shown: usize,
    sorry: bool,
    unsound: bool,
    mvar: bool,
    constants: Vec<String>,
}

type Answer = Result<Value, Value>;

fn error(kind: &str, desc: impl Into<String>) -> Value {
    json!({"error": kind, "desc": desc.into()})
}

impl<'a> Repl<'a> {
    pub(crate) fn open(switches: &'a Switches) -> Result<Self, Box<dyn Error>> {
        let options = json!({
            "printJsonPretty": false, "printExprPretty": true, "printExprAST": false,
            "printDependentMVars": false, "noRepeat": false, "printAuxDecls": false,
            "printImplementationDetailHyps": false, "automaticMode": !switches.stays_manual,
            "timeout": 0,
        });
        let options = options.as_object().cloned().unwrap_or_default();
        let lean = Lean::open(&switches.tree)?;
        Ok(Self { switches, lean, options, next: 0, states: HashMap::new() })
    }

    pub(crate) fn answer(&mut self, line: &str) -> Reaction {
        let (command, payload) = match parse(line) {
            Ok(request) => request,
            Err(desc) => return Reaction::Answer(error("command", desc)),
        };
        let tactic = payload["tactic"].as_str().unwrap_or_default();
        let fault = self.switches.fault(tactic).or_else(|| self.switches.fault(&command));
        match fault {
            Some(Fault::Die) => return Reaction::Die,
            Some(Fault::End) => return Reaction::End,
            Some(Fault::Hang) => return Reaction::Hang,
            Some(Fault::Garbage) => return Reaction::Text("uncaught exception: \u{1}\n".into()),
            Some(Fault::Nulls) => {
                return Reaction::Answer(
                    json!({"nextStateId": null, "goals": null, "messages": null}),
                );
            }
            Some(Fault::Shape) => {
                return Reaction::Answer(json!({"nextStateId": 1, "goals": "none"}));
            }
            Some(Fault::Core) => {
                return Reaction::Answer(error("core", "maximum recursion depth has been reached"));
            }
            Some(Fault::Interrupt) => return self.interrupt(),
            Some(Fault::Forget) => {
                self.states.clear();
                self.next = 0;
            }
            _ => {}
        }
        let mut answer = self.run(&command, &payload).unwrap_or_else(|error| error);
        match fault {
            Some(Fault::DieTorn) => Reaction::Torn(answer),
            Some(Fault::Extra) => Reaction::Text(format!("{answer}\n{answer}\n")),
            Some(Fault::Long(bytes)) => {
                answer["padding"] = json!("x".repeat(bytes));
                Reaction::Answer(answer)
            }
            Some(Fault::Absent) => {
                if let Some(fields) = answer.as_object_mut() {
                    fields.remove("goals");
                }
                Reaction::Answer(answer)
            }
            _ => Reaction::Answer(answer),
        }
    }

    fn interrupt(&self) -> Reaction {
        match self.options["timeout"].as_u64() {
            Some(timeout) if timeout > 0 => {
                thread::sleep(Duration::from_millis(timeout));
                Reaction::Answer(error("io", "interrupt"))
            }
            _ => Reaction::Hang,
        }
    }

    fn run(&mut self, command: &str, payload: &Value) -> Answer {
        match command {
            "reset" => {
                let count = self.states.len();
                self.states.clear();
                self.next = 0;
                Ok(json!({"nGoals": count}))
            }
            "stat" => Ok(json!({"nGoals": self.states.len()})),
            "options.set" => {
                self.set_options(payload);
                Ok(json!({}))
            }
            "options.print" => Ok(Value::Object(self.options.clone())),
            "goal.start" => self.start(payload),
            "goal.tactic" => self.tactic(payload),
            "goal.print" => self.print(payload),
            "goal.delete" => self.delete(payload),
            "frontend.process" => {
                let text = payload["file"].as_str().ok_or_else(|| {
                    error("arguments", "Exactly one of {fileName, file} must be supplied")
                })?;
                Ok(file::process(&self.lean, text, self.switches.silent_file))
            }
            _ => Err(error("command", format!("Unknown command {command}"))),
        }
    }

    fn set_options(&mut self, payload: &Value) {
        for (name, value) in payload.as_object().into_iter().flatten() {
            let kept = self.switches.stays_manual && name == "automaticMode";
            if !kept && let Some(option) = self.options.get_mut(name) {
                *option = value.clone();
            }
        }
    }

    fn is_automatic(&self) -> bool {
        !self.switches.lies_automatic && self.options["automaticMode"] == json!(true)
    }

    fn start(&mut self, payload: &Value) -> Answer {
        let theorem = match (payload["expr"].as_str(), payload["copyFrom"].as_str()) {
            (Some(kind), None) => self
                .lean
                .by_type(kind)
                .ok_or_else(|| error("parse", format!("<input>:1:0: cannot read {kind}")))?,
            (None, Some(name)) => self
                .lean
                .by_name(name)
                .ok_or_else(|| error("index", format!("Symbol not found: {name}")))?,
            _ => {
                return Err(error("arguments", "Exactly one of {expr, copyFrom} must be supplied"));
            }
        };
        let theorem = self.lean.theorems.iter().position(|one| std::ptr::eq(one, theorem));
        let theorem = theorem.unwrap_or_default();
        let id = self.add(State { theorem, shown: 1, mvar: true, ..State::default() });
        Ok(json!({"stateId": id, "root": "_uniq.9"}))
    }

    fn add(&mut self, state: State) -> u64 {
        let id = self.next;
        self.next += 1;
        self.states.insert(id, state);
        id
    }

    fn state(&self, payload: &Value) -> Result<&State, Value> {
        let id = payload["stateId"].as_u64();
        let id =
            id.ok_or_else(|| error("command", "Unable to parse json: stateId: Nat expected"))?;
        let unknown = || error("index", format!("Invalid state index {id}"));
        self.states.get(&id).ok_or_else(unknown)
    }

    fn theorem(&self, state: &State) -> &Theorem {
        &self.lean.theorems[state.theorem]
    }

    fn goals(&self, state: &State) -> Vec<Value> {
        let goals = self.theorem(state).goals(state.at).iter().take(state.shown);
        goals.zip(10..).map(|(goal, number): (&Goal, usize)| goal.to_json(number)).collect()
    }

    fn tactic(&mut self, payload: &Value) -> Answer {
        let mut state = self.state(payload)?.clone();
        let tactic = payload["tactic"].as_str().ok_or_else(|| {
            error(
                "operation",
                "Exactly one of {tactic, mode, expr, have, let, draft} must be supplied",
            )
        })?;
        let automatic = payload["autoResume"].as_bool().unwrap_or(self.is_automatic());
        let mut messages = Vec::new();
        let mut done = Step::default();
        for step in self.theorem(&state).steps(state.at, tactic) {
            if state.shown == 0 {
                return Err(error("index", "No goals to be solved"));
            }
            let Some(to) = step.to else { return Ok(refused(&step)) };
            let theorem = self.theorem(&state);
            let (before, after) = (theorem.goals(state.at).len(), theorem.goals(to).len());
            // Off, only what comes out of the first goal stays awake.
            state.shown = if automatic { after } else { (after + 1).saturating_sub(before) };
            state.at = to;
            state.sorry |= step.root_has_sorry | step.has_sorry;
            state.unsound |= step.has_unsafe;
            state.mvar = step.root_has_mvar || after > 0;
            state.constants.extend_from_slice(&step.constants);
            messages.extend(step.error_message.iter().map(|text| message("error", text)));
            done.has_sorry |= step.has_sorry;
            done.has_unsafe |= step.has_unsafe;
        }
        let goals = self.goals(&state);
        let id = self.add(state);
        Ok(json!({
            "nextStateId": id, "goals": goals, "messages": messages,
            "hasSorry": done.has_sorry, "hasUnsafe": done.has_unsafe,
        }))
    }

    fn print(&self, payload: &Value) -> Answer {
        let state = self.state(payload)?;
        let wants = |what: &str| payload[what] == json!(true);
        let goals = if wants("goals") { self.goals(state) } else { Vec::new() };
        let mut answer = json!({"goals": goals, "extraMVars": []});
        if wants("rootExpr") {
            answer["root"] = json!({"pp": "fun p => ..."});
            if self.options["printExprAST"] == json!(true) {
                let constants = state.constants.iter().map(|name| format!(" (:c {name})"));
                answer["root"]["sexp"] =
                    json!(format!("(:lambda p{})", constants.collect::<String>()));
            }
        }
        if !self.switches.no_root_flags {
            answer["rootHasSorry"] = json!(state.sorry);
            answer["rootHasUnsafe"] = json!(state.unsound);
            answer["rootHasMVar"] = json!(state.mvar);
        }
        Ok(answer)
    }

    fn delete(&mut self, payload: &Value) -> Answer {
        let ids = payload["stateIds"].as_array();
        let ids = ids.ok_or_else(|| error("command", "Unable to parse json: stateIds"))?;
        for id in ids.iter().filter_map(Value::as_u64) {
            self.states.remove(&id);
        }
        Ok(json!({}))
    }
}

fn parse(line: &str) -> Result<(String, Value), String> {
    let line = line.trim();
    if line.starts_with('{') {
        let request: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let command = request["cmd"].as_str().ok_or("cmd: String expected")?.to_owned();
        return Ok((command, request["payload"].clone()));
    }
    let Some((command, payload)) = line.split_once(' ') else {
        return Ok((line.to_owned(), Value::Null));
    };
    let payload = serde_json::from_str(payload).map_err(|error| error.to_string())?;
    Ok((command.to_owned(), payload))
}

/// A refused tactic: neither goals nor a state.
fn refused(step: &Step) -> Value {
    if let Some(text) = &step.parse_error {
        return json!({"parseError": text, "hasSorry": false, "hasUnsafe": false});
    }
    let text = step.refused.as_deref().unwrap_or("tactic failed");
    json!({"messages": [message("error", text)], "hasSorry": false, "hasUnsafe": false})
}

pub(crate) fn message(severity: &str, text: &str) -> Value {
    json!({
        "fileName": "<anonymous>", "kind": "[anonymous]", "severity": severity, "data": text,
        "pos": {"line": 1, "column": 0}, "endPos": {"line": 1, "column": 5},
        "isSilent": false, "keepFullRange": false,
    })
}
