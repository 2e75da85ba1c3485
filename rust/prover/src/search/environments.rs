//! What applies tactics: options.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ebm_search::Recording;
use ebm_search::environments::ReplayEnvironment;
use ebm_search::search::{Environment, Theorem};
use serde_json::{Value, json};

use super::Search;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What --trajectories recorded.
    Replay,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Environment")]
pub(super) struct EnvironmentArguments {
    /// What applies tactics; by default a replay of --trajectories.
    #[arg(long, value_name = "KIND")]
    environment: Option<Kind>,
}

impl EnvironmentArguments {
    pub(super) fn theorems_of(&self, recording: &Recording) -> Vec<Theorem> {
        recording.theorems().iter().map(Theorem::named).collect()
    }

    pub(super) fn open(
        &self,
        search: &Search,
        recording: Option<&Arc<Recording>>,
    ) -> anyhow::Result<(Box<dyn Environment>, Value)> {
        let recording = recording.context("--environment replay: needs --trajectories")?;
        let environment = ReplayEnvironment::new(Arc::clone(recording));
        Ok((Box::new(environment), json!({ "kind": "replay", "files": files(&search.trajectories)? })))
    }
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
    if described.is_empty() {
        bail!("--trajectories: there is no file");
    }
    Ok(Value::Array(described))
}
