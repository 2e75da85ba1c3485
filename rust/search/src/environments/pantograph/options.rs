//! How Pantograph is started, and how long it may take.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// How a request is written on its line. Pantograph reads both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Framing {
    /// `goal.print {"stateId": 0}`
    #[default]
    Command,
    /// `{"cmd": "goal.print", "payload": {"stateId": 0}}`
    Json,
}

/// How a [`PantographEnvironment`](super::PantographEnvironment) works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PantographOptions {
    /// The program that becomes the REPL: `repl`, or `lake`.
    pub program: OsString,
    /// Its arguments, the imported modules among them: `env repl Mathlib`.
    pub arguments: Vec<OsString>,
    /// The folder in which it runs, as a rule that of the Lean project. `None`: that of this process.
    pub working_folder: Option<PathBuf>,
    /// Most processes that serve searches. Each imports its modules for itself, so this bounds memory
    /// too. As many again may run for a moment, to check proofs.
    pub workers: NonZeroUsize,
    /// How long a process may take until it is ready. Importing Mathlib takes a minute or more.
    pub start_time: Duration,
    /// How long a tactic may take. Pantograph interrupts it then, which refuses the tactic and leaves
    /// the process alive.
    pub tactic_time: Duration,
    /// How much longer a process may be silent before it is ended and replaced.
    pub grace: Duration,
    /// How long the check of a whole proof may take: each of its tactics, and its file.
    pub check_time: Duration,
    /// Most bytes of an answer. A process that sends more is ended and replaced.
    pub answer_bytes: usize,
    /// How requests are written.
    pub framing: Framing,
}

impl PantographOptions {
    /// Options for a program without arguments, with one worker.
    #[must_use]
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            working_folder: None,
            workers: NonZeroUsize::MIN,
            start_time: Duration::from_secs(300),
            tactic_time: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            check_time: Duration::from_secs(120),
            answer_bytes: 64 << 20,
            framing: Framing::default(),
        }
    }

    /// Sets the program's arguments.
    #[must_use]
    pub fn with_arguments(self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { arguments: arguments.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets the folder in which it runs.
    #[must_use]
    pub fn with_working_folder(self, folder: impl Into<PathBuf>) -> Self {
        Self { working_folder: Some(folder.into()), ..self }
    }

    /// Sets the most processes that serve searches.
    #[must_use]
    pub fn with_workers(self, workers: NonZeroUsize) -> Self {
        Self { workers, ..self }
    }

    /// Sets how long a process may take until it is ready.
    #[must_use]
    pub fn with_start_time(self, start_time: Duration) -> Self {
        Self { start_time, ..self }
    }

    /// Sets how long a tactic may take.
    #[must_use]
    pub fn with_tactic_time(self, tactic_time: Duration) -> Self {
        Self { tactic_time, ..self }
    }

    /// Sets how much longer a process may be silent.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Sets how long the check of a whole proof may take.
    #[must_use]
    pub fn with_check_time(self, check_time: Duration) -> Self {
        Self { check_time, ..self }
    }

    /// Sets the most bytes of an answer.
    #[must_use]
    pub fn with_answer_bytes(self, answer_bytes: usize) -> Self {
        Self { answer_bytes, ..self }
    }

    /// Sets how requests are written.
    #[must_use]
    pub fn with_framing(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// Why these cannot be used.
    pub(super) fn fault(&self) -> Option<&'static str> {
        // Pantograph reads 0 as "no limit", and knows whole milliseconds only.
        let too_short = |time: Duration| time.as_millis() == 0;
        if too_short(self.tactic_time) {
            Some("tactic_time is below a millisecond")
        } else if too_short(self.check_time) {
            Some("check_time is below a millisecond")
        } else if self.answer_bytes == 0 {
            Some("answer_bytes is 0")
        } else {
            None
        }
    }
}
