//! The stand-in, and two clients for it: the environment, and one that reads answers carelessly.

use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ebm_search::environments::pantograph::{PantographEnvironment, PantographOptions};
use ebm_search::search::{
    Applied, Cancel, Control, Environment, EnvironmentError, Session, StateId, Theorem, Verdict,
};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const TREE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pantograph_tree.json");

/// `cargo test` builds the examples beside the tests.
pub(crate) fn stand_in() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/pantograph_stand_in");
    let hint = "cargo build -p ebm-search --example pantograph_stand_in";
    assert!(path.is_file(), "{} is missing\nhint: {hint}", path.display());
    path
}

pub(crate) fn control() -> Control {
    Control::new(Cancel::default())
}

/// The stand-in with switches, and what it was asked.
pub(crate) struct Lean {
    folder: TempDir,
    switches: Vec<String>,
}

impl Lean {
    pub(crate) fn new(switches: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut all = vec![TREE.to_owned()];
        all.extend(switches.iter().map(|&switch| switch.to_owned()));
        all.extend(["--log".to_owned(), folder.path().join("log").display().to_string()]);
        Self { folder, switches: all }
    }

    /// The same, where a fault happens once.
    pub(crate) fn once(switches: &[&str]) -> Self {
        let mut lean = Self::new(switches);
        let file = lean.file("happened").display().to_string();
        lean.switches.extend(["--once".to_owned(), file]);
        lean
    }

    pub(crate) fn with_tree(mut self, tree: &Path) -> Self {
        self.switches[0] = tree.display().to_string();
        self
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn switches(&self) -> &[String] {
        &self.switches
    }

    /// Long limits, so that a slow machine changes nothing; tests of limits set their own.
    pub(crate) fn options(&self) -> PantographOptions {
        PantographOptions::new(stand_in())
            .with_arguments(&self.switches)
            .with_tactic_time(Duration::from_secs(60))
            .with_workers(NonZeroUsize::MIN)
    }

    pub(crate) fn environment(&self) -> PantographEnvironment {
        PantographEnvironment::new(self.options()).unwrap()
    }

    /// Process and request of each line of the log.
    pub(crate) fn log(&self) -> Vec<(u32, String)> {
        let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        let split = |line: &str| {
            let (process, request) = line.split_once(' ').unwrap();
            (process.parse().unwrap(), request.to_owned())
        };
        log.lines().map(split).collect()
    }

    /// The processes that were asked something, in their order.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut processes: Vec<u32> = self.log().into_iter().map(|(process, _)| process).collect();
        processes.dedup();
        processes
    }

    pub(crate) fn requests(&self, command: &str) -> Vec<String> {
        let log = self.log().into_iter().map(|(_, request)| request);
        log.filter(|request| request.starts_with(command)).collect()
    }

    pub(crate) fn careless(&self) -> Careless {
        Careless::start(&self.switches)
    }
}

pub(crate) const FALSE_THEOREM: &str = "∀ (p q : Prop), p ∧ q";
pub(crate) const SWAP: &str = "∀ (p q : Prop), p ∨ q → q ∨ p";

pub(crate) fn theorem(statement: &str) -> Theorem {
    Theorem::named("t").with_statement(statement)
}

pub(crate) fn tactics(tactics: &[&str]) -> Vec<Arc<str>> {
    tactics.iter().map(|&tactic| tactic.into()).collect()
}

/// What one tactic does.
pub(crate) fn apply(session: &mut dyn Session, state: StateId, tactic: &str) -> Applied {
    session.apply(state, &tactics(&[tactic]), &control()).unwrap().remove(0)
}

/// The state after tactics from the root, each of which leaves goals.
pub(crate) fn walk(session: &mut dyn Session, path: &[&str]) -> StateId {
    path.iter().fold(StateId::ROOT, |state, tactic| open(&apply(session, state, tactic)))
}

pub(crate) fn open(applied: &Applied) -> StateId {
    match applied {
        Applied::Open { state, .. } => *state,
        other => panic!("not open: {other:?}"),
    }
}

pub(crate) fn reason(applied: &Applied) -> &str {
    match applied {
        Applied::Refused(reason) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// What the environment says to a tactic of the false theorem after `path`.
pub(crate) fn judge(environment: &dyn Environment, path: &[&str], tactic: &str) -> Applied {
    let theorem = theorem(FALSE_THEOREM);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, path);
    apply(&mut *session, state, tactic)
}

pub(crate) fn verdict(environment: &dyn Environment, theorem: &Theorem, proof: &[&str]) -> Verdict {
    let mut verdicts = environment.verify(theorem, &[tactics(proof)], &control()).unwrap();
    verdicts.remove(0)
}

pub(crate) fn start_error(environment: &dyn Environment) -> EnvironmentError {
    let theorem = theorem(SWAP);
    match environment.start(&theorem, &control()) {
        Ok((_, text)) => panic!("started: {text}"),
        Err(error) => error,
    }
}

/// A client that believes what looks like a proof.
pub(crate) struct Careless {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Careless {
    fn start(switches: &[String]) -> Self {
        let mut command = Command::new(stand_in());
        command.args(switches).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut client = Self { child, input, output };
        while client.line().trim() != "ready." {}
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the stand-in ended");
        line
    }

    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(crate) fn ask(&mut self, command: &str, payload: &Value) -> Value {
        self.send(&format!("{command} {payload}"));
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Starts the false theorem and walks; the answer to the last tactic.
    pub(crate) fn walk(&mut self, path: &[&str]) -> Value {
        let mut answer = self.ask("goal.start", &json!({"expr": FALSE_THEOREM}));
        let mut state = answer["stateId"].clone();
        for tactic in path {
            answer = self.ask("goal.tactic", &json!({"stateId": state, "tactic": tactic}));
            state = answer["nextStateId"].clone();
        }
        answer
    }

    /// Whether the child ends by itself.
    pub(crate) fn ends(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Careless {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The careless reading: no goals that I can see, so it is proved.
pub(crate) fn looks_proved(answer: &Value) -> bool {
    answer["goals"].as_array().is_none_or(Vec::is_empty)
}
