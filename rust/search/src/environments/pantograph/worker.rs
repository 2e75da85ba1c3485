//! A process that speaks Pantograph's protocol: its start, and one request at a time.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fault::{CallError, Fault, StartError};
use super::options::{Framing, PantographOptions};
use super::process::{LineError, Process};
use super::protocol::{ErrorAnswer, Nothing, PrintedOptions, SetOptions, request};
use crate::search::Control;
use crate::shown::{harmless, one_line};

/// Most bytes of a strange line that a message shows.
const SHOWN: usize = 300;

/// An answer `{error, desc}`.
#[derive(Debug)]
pub(super) struct Refusal {
    pub kind: String,
    pub text: String,
}

pub(super) struct Worker {
    process: Process,
    framing: Framing,
    /// How long a tactic may take, as Pantograph was told.
    time: Duration,
    /// How long an answer may take.
    patience: Duration,
    /// Until when the answer to a request is waited for that nobody wants any more.
    owed: Option<Instant>,
    /// The highest number of a state.
    newest: Option<u64>,
    sound: bool,
}

impl Worker {
    /// Starts a process in which a tactic may take `time`, and waits until it is ready.
    pub(super) fn start(
        options: &PantographOptions,
        time: Duration,
        control: &Control,
    ) -> Result<Self, StartError> {
        let process = Process::spawn(options).map_err(|error| not_spawned(options, &error))?;
        let (framing, patience) = (options.framing, time.saturating_add(options.grace));
        let (owed, newest) = (None, None);
        let mut worker = Self { process, framing, time, patience, owed, newest, sound: true };
        worker.wait_until_ready(options, control)?;
        match worker.configure(control, false) {
            Ok(()) => Ok(worker),
            Err(CallError::Stopped(stop)) => Err(stop.into()),
            Err(CallError::Fault(fault)) => Err(StartError::Failed(format!(
                "{} does not take its options: {fault}",
                shown(options)
            ))),
        }
    }

    /// Sets all that our reading of its answers depends on. `trees`: terms are printed as trees too.
    pub(super) fn configure(&mut self, control: &Control, trees: bool) -> Result<(), CallError> {
        let command = "options.set";
        let options = SetOptions {
            automatic_mode: true,
            timeout: u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX),
            print_json_pretty: false,
            print_expr_pretty: true,
            print_expr_ast: trees,
            no_repeat: false,
        };
        let _: Empty = self.must(command, &options, control)?;
        let command = "options.print";
        let printed: PrintedOptions = self.must(command, &Nothing {}, control)?;
        if printed.automatic_mode == Some(true) {
            return Ok(());
        }
        // Goals would fall asleep, and "no goals" would be no proof.
        let reason = "automaticMode is not on after it was set".to_owned();
        Err(self.broken(Fault::Protocol { command, reason }).into())
    }

    /// Whether it may be asked again.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
    }

    /// How long a tactic may take.
    pub(super) fn time(&self) -> Duration {
        self.time
    }

    /// Forgets all states, those included that a stopped search left.
    pub(super) fn reset(&mut self, control: &Control) -> Result<(), CallError> {
        let _: Empty = self.must("reset", &Nothing {}, control)?;
        self.newest = None;
        Ok(())
    }

    /// Takes note of a new state. Numbers only go up, so that a stray answer shows.
    pub(super) fn made(&mut self, id: u64) -> Result<(), Fault> {
        if self.newest.is_some_and(|newest| id <= newest) {
            return Err(self.broken(Fault::OldState(id)));
        }
        self.newest = Some(id);
        Ok(())
    }

    /// Asks, where an answer `{error, desc}` means another protocol.
    pub(super) fn must<A: DeserializeOwned>(
        &mut self,
        command: &'static str,
        payload: &impl Serialize,
        control: &Control,
    ) -> Result<A, CallError> {
        self.ask(command, payload, control)?.map_err(|refusal| {
            let reason = format!("{} ({})", refusal.text, refusal.kind);
            self.broken(Fault::Protocol { command, reason }).into()
        })
    }

    /// Asks for an answer. The inner error is Pantograph's.
    pub(super) fn ask<A: DeserializeOwned>(
        &mut self,
        command: &'static str,
        payload: &impl Serialize,
        control: &Control,
    ) -> Result<Result<A, Refusal>, CallError> {
        control.check()?;
        self.settle(control)?;
        if let Some(line) = self.process.unasked() {
            // Taken for an answer, it would shift all answers by one.
            return Err(self.broken(Fault::Garbage(excerpt(&line))).into());
        }
        self.process.send(request(self.framing, command, payload));
        self.owed = Some(Instant::now() + self.patience);
        let line = self.settle(control)?.unwrap_or_default();
        self.read(command, &line)
    }

    /// Waits for the answer that is owed, if one is. A wait that is stopped leaves it owed: Pantograph
    /// ends the tactic in time, and the process stays of use.
    fn settle(&mut self, control: &Control) -> Result<Option<Vec<u8>>, CallError> {
        let Some(until) = self.owed else { return Ok(None) };
        match self.process.line(until, control) {
            Ok(line) => {
                self.owed = None;
                Ok(Some(line))
            }
            Err(LineError::Late) => Err(self.broken(Fault::Silent(self.patience)).into()),
            Err(LineError::Call(CallError::Fault(fault))) => Err(self.broken(fault).into()),
            Err(LineError::Call(stopped)) => Err(stopped),
        }
    }

    fn read<A: DeserializeOwned>(
        &mut self,
        command: &'static str,
        line: &[u8],
    ) -> Result<Result<A, Refusal>, CallError> {
        let Ok(error) = serde_json::from_slice::<ErrorAnswer>(line) else {
            return Err(self.broken(Fault::Garbage(excerpt(line))).into());
        };
        if let Some(kind) = error.error {
            let text = harmless(&error.desc.unwrap_or_default());
            // Our requests are right for the Pantographs that we know.
            if kind == "command" || kind == "arguments" {
                let reason = format!("{text} ({kind})");
                return Err(self.broken(Fault::Protocol { command, reason }).into());
            }
            return Ok(Err(Refusal { kind, text }));
        }
        serde_json::from_slice(line).map(Ok).map_err(|error| {
            let reason = format!("{error}: {}", excerpt(line));
            self.broken(Fault::Protocol { command, reason }).into()
        })
    }

    /// Marks it as one that is never asked again.
    pub(super) fn broken(&mut self, fault: Fault) -> Fault {
        self.sound = false;
        fault
    }

    fn wait_until_ready(
        &mut self,
        options: &PantographOptions,
        control: &Control,
    ) -> Result<(), StartError> {
        let until = Instant::now() + options.start_time;
        let mut before = String::new();
        loop {
            control.check()?;
            let line = match self.process.line(until, control) {
                Ok(line) if Instant::now() < until => line,
                Ok(_) | Err(LineError::Late) => return Err(self.not_ready(options, &before)),
                Err(LineError::Call(CallError::Stopped(stop))) => return Err(stop.into()),
                Err(LineError::Call(CallError::Fault(fault))) => {
                    return Err(StartError::Failed(format!(
                        "{} did not start: {fault}{before}",
                        shown(options)
                    )));
                }
            };
            if line.trim_ascii() == b"ready." {
                return Ok(());
            }
            if let Some(text) = import_error(&line) {
                return Err(StartError::Failed(format!(
                    "{} could not import its modules: {}{}\n\
                     hint: build them in the working folder, with the Lean that built Pantograph",
                    shown(options),
                    one_line(&text),
                    self.process.errors()
                )));
            }
            before = format!("; its last line: {:?}", excerpt(&line));
        }
    }

    fn not_ready(&self, options: &PantographOptions, before: &str) -> StartError {
        StartError::Failed(format!(
            "{} was not ready after {:?}{before}{}\n\
             hint: allow more time to start (`--start-timeout`); importing Mathlib takes a minute or more",
            shown(options),
            options.start_time,
            self.process.errors()
        ))
    }
}

/// An answer of which nothing is wanted.
#[derive(serde::Deserialize)]
pub(super) struct Empty {}

fn import_error(line: &[u8]) -> Option<String> {
    let answer: ErrorAnswer = serde_json::from_slice(line).ok()?;
    let kind = answer.error?;
    Some(answer.desc.unwrap_or(kind))
}

fn not_spawned(options: &PantographOptions, error: &std::io::Error) -> StartError {
    let hint = match (error.kind(), &options.working_folder) {
        (ErrorKind::NotFound, Some(folder)) => {
            format!(
                "\nhint: is Pantograph's `repl` built and on the PATH, and is there a folder {}?",
                folder.display()
            )
        }
        (ErrorKind::NotFound, None) => {
            "\nhint: is Pantograph's `repl` built and on the PATH?".to_owned()
        }
        _ => String::new(),
    };
    StartError::Failed(format!("{} did not start: {error}{hint}", shown(options)))
}

/// The command line, for messages.
fn shown(options: &PantographOptions) -> String {
    let words = std::iter::once(&options.program).chain(&options.arguments);
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn excerpt(line: &[u8]) -> String {
    let line = line.trim_ascii();
    let mut text = String::from_utf8_lossy(&line[..line.len().min(SHOWN)]).into_owned();
    if line.len() > SHOWN {
        text.push('…');
    }
    text
}
