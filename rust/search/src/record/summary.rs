//! What a trajectory file says of its searches, beside their rows.

use std::collections::BTreeMap;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use ebm_cache::{CacheError, guard, storage};

use crate::recorded::TrajectoryError;
use crate::recording::Recording;
use crate::search::SearchResult;

/// The key of the file's metadata under which it stands.
pub(super) const KEY: &str = "ebm-encode.search";
const VERSION: u32 = 1;

/// The search for one theorem, as a trajectory file records it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TheoremSummary {
    /// The theorem.
    pub theorem: String,
    /// What it says, where the search was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// Why the search ended.
    pub ended: String,
    /// Number of expansions.
    pub expansions: u64,
    /// Number of distinct states.
    pub states: u64,
    /// Tactics that were applied.
    pub tactics: u64,
    /// The first proof, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Vec<String>>,
    /// Expansions until it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_expansions: Option<u64>,
    /// States that were to be scored and have no score.
    #[serde(default)]
    pub unscored: u64,
    /// What looked like a proof and was refused by the verification.
    #[serde(default)]
    pub false_proofs: u64,
    /// How long the search took, in seconds.
    pub seconds: f64,
    /// Its rows in the file.
    pub rows: u64,
}

impl TheoremSummary {
    /// What a search did; `rows` is the number of its rows in the file, 0 if it is in none.
    #[must_use]
    pub fn of(search: &SearchResult, rows: usize) -> Self {
        let proof = search.proof.as_ref();
        Self {
            theorem: search.theorem.clone(),
            statement: search.statement.clone(),
            ended: search.ended.name().to_owned(),
            expansions: search.expansions(),
            states: search.graph.states().len() as u64,
            tactics: search.tactics,
            proof: proof.map(|proof| proof.tactics.iter().map(|t| (**t).to_owned()).collect()),
            proof_expansions: proof.map(|proof| proof.expansions),
            unscored: search.unscored,
            false_proofs: search.false_proofs.len() as u64,
            seconds: search.time.as_secs_f64(),
            rows: rows as u64,
        }
    }

    /// Whether it was proved.
    #[must_use]
    pub fn solved(&self) -> bool {
        self.proof.is_some()
    }
}

/// The object under [`KEY`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileSummary {
    pub(super) version: u32,
    pub(super) ebm_score: String,
    pub(super) settings: Value,
    pub(super) theorems: Vec<TheoremSummary>,
}

impl FileSummary {
    pub(super) fn new(settings: Value, theorems: Vec<TheoremSummary>) -> Self {
        Self { version: VERSION, ebm_score: super::rows::SCORE.to_owned(), settings, theorems }
    }

    /// What a file says of itself; `None` for one of other software.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, TrajectoryError> {
        let input = storage::open(path)?;
        let json = guard(path, || {
            let file = SerializedFileReader::new(input).map_err(|error| CacheError::Format {
                path: path.to_owned(),
                detail: format!("not a readable Parquet file: {error}"),
            })?;
            let entries = file.metadata().file_metadata().key_value_metadata();
            let entry = entries.into_iter().flatten().find(|entry| entry.key == KEY);
            Ok(entry.and_then(|entry| entry.value.clone()))
        })?;
        let Some(json) = json else { return Ok(None) };
        let wrong = |reason: String| TrajectoryError::Format {
            path: path.to_owned(),
            reason: format!("metadata {KEY:?}: {reason}"),
        };
        let summary: Self =
            serde_json::from_str(&json).map_err(|error| wrong(error.to_string()))?;
        if summary.version > VERSION {
            return Err(wrong(format!(
                "version {} is later than this software's, {VERSION}\nhint: upgrade ebm-encode",
                summary.version
            )));
        }
        Ok(Some(summary))
    }
}

/// Whether and how each theorem of a trajectory file was searched, by its name.
///
/// Files of other software have rows only: then the summaries say whether a finished proof is recorded,
/// and how many states and expansions; their proofs are empty lists.
///
/// # Errors
/// [`TrajectoryError`], if the file cannot be read.
pub fn read_summaries(path: &Path) -> Result<BTreeMap<String, TheoremSummary>, TrajectoryError> {
    let theorems = match FileSummary::read(path)? {
        Some(summary) => summary.theorems,
        None => from_rows(&Recording::read(&[path])?),
    };
    Ok(theorems.into_iter().map(|theorem| (theorem.theorem.clone(), theorem)).collect())
}

fn from_rows(recording: &Recording) -> Vec<TheoremSummary> {
    let summary = |name: &String| {
        let distances = recording.distances(name);
        let (states, expansions) = recording.theorem(name).map_or((0, 0), |theorem| {
            let expanded = theorem.states.iter().filter(|state| state.expanded).count();
            (theorem.states.len(), expanded)
        });
        TheoremSummary {
            theorem: name.clone(),
            statement: None,
            ended: "unknown".to_owned(),
            expansions: expansions as u64,
            states: states as u64,
            tactics: 0,
            proof: (!distances.is_empty()).then(Vec::new),
            proof_expansions: None,
            unscored: 0,
            false_proofs: 0,
            seconds: 0.0,
            rows: 0,
        }
    };
    recording.theorems().iter().map(summary).collect()
}
