//! `ebm-prover score`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, value_parser};
use ebm_cache::{Cache, OpenMode};
use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
use ebm_search::{EnergyHead, Node, Score as NodeScore, ValueScorer};
use serde_json::{Map, Value, json};

use crate::model::{ModelArguments, PythonArguments};
use crate::node_lines::{NodeLine, NodeLines};
use crate::outcome::Outcome;
use crate::text::warn;

/// What is added to a line; an earlier run's are replaced.
const ADDED: [&str; 5] = ["energy", "score", "z", "finished", "unscored"];

/// Score states with an energy head: JSON lines in, JSON lines out, in their order.
///
/// A line is an object with `state_pp`, a text, and perhaps `is_proof_complete`; its other fields are
/// passed through. Added are `energy` (lower is better), `score` (minus the energy) and `z` (the score in
/// deviations from the validation states' mean); or `finished`: true, for a complete proof, which is
/// better than any open state; or `unscored` with the reason. Lines come out as soon as no more input is
/// waiting. Exit code 1 if a state is unscored.
#[derive(Debug, Args)]
pub(crate) struct Score {
    /// The head file, of `ebm-encode train-head`.
    #[arg(long, value_name = "HEAD.safetensors")]
    head: PathBuf,
    /// The model's folder, or its hub id; it must be the head's encoder.
    #[arg(long, value_name = "DIR_OR_HUB_ID", required_unless_present = "backend")]
    model_path: Option<String>,
    /// A cache of the same encoder, to be asked first.
    #[arg(long, value_name = "C.parquet")]
    cache: Option<PathBuf>,
    /// File of JSON lines; standard input if it is - or not given.
    #[arg(long, value_name = "FILE.jsonl")]
    states: Option<PathBuf>,
    /// Most lines that are scored at once.
    #[arg(long, value_name = "LINES", default_value_t = 256, value_parser = value_parser!(u32).range(1..=65536))]
    max_batch: u32,
    #[command(flatten)]
    python: PythonArguments,
    #[command(flatten)]
    model: ModelArguments,
}

impl Score {
    pub(crate) fn run(&self, out: &mut impl Write) -> anyhow::Result<Outcome> {
        self.model.check(self.model_path.as_deref(), false)?;
        let conversion = self.model.formats.conversion_unseen()?;
        let scorer = self.scorer()?;
        let mut lines = NodeLines::read(self.states.as_deref())?;
        let (mut all, mut unscored) = (0, 0);
        loop {
            let (mut batch, end) = lines.next_batch(self.max_batch as usize);
            for line in batch.iter_mut().filter(|line| !line.finished) {
                line.refused = conversion.apply(&mut line.state).err().map(|e| format!("{e:#}"));
            }
            all += batch.len();
            unscored += score_batch(&scorer, batch, out)?;
            // What came before a wrong line is printed already.
            if end? {
                break;
            }
        }
        if unscored == 0 {
            return Ok(Outcome::Good);
        }
        warn(&format!("{unscored} of {all} states unscored"));
        Ok(Outcome::CheckFailed)
    }

    /// The head is compared with the cache first: loading a model takes long.
    fn scorer(&self) -> anyhow::Result<ValueScorer> {
        let head = EnergyHead::open(&self.head)?;
        let open = |path| Cache::open(path, OpenMode::Auto);
        let cache = self.cache.as_ref().map(open).transpose()?;
        if let Some(cache) = &cache {
            head.require_cache(cache)?;
        }
        let encoder = self.model.load(&self.python, self.model_path.as_deref())?;
        let encoder = CachedEncoder::new(encoder, cache, CachedEncoderOptions::default())?;
        Ok(ValueScorer::new(Arc::new(encoder), head)?)
    }
}

/// Scores some lines, prints them, and says how many have no score.
fn score_batch(
    scorer: &ValueScorer,
    batch: Vec<NodeLine>,
    out: &mut impl Write,
) -> anyhow::Result<usize> {
    if batch.is_empty() {
        return Ok(0);
    }
    let usable = batch.iter().filter(|line| line.refused.is_none());
    let nodes: Vec<Node<'_>> = usable.map(NodeLine::node).collect();
    let found = scorer.score(&nodes)?;
    let mut unscored = batch.len() - found.len();
    unscored += found.iter().filter(|score| matches!(score, NodeScore::Unscored(_))).count();
    let mut found = found.into_iter();
    for line in batch {
        let score = if line.refused.is_none() { found.next() } else { None };
        writeln!(out, "{}", with_score(line.fields, score.ok_or(line.refused)))?;
    }
    out.flush()?;
    Ok(unscored)
}

/// A line with its score, or with why its state was refused.
fn with_score(mut fields: Map<String, Value>, score: Result<NodeScore, Option<String>>) -> Value {
    for name in ADDED {
        fields.remove(name);
    }
    let mut add = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    match score {
        Ok(NodeScore::Finished) => {
            add("finished", json!(true));
        }
        Ok(NodeScore::Scored(scored)) => {
            add("energy", json!(scored.energy));
            add("score", json!(scored.score));
            add("z", json!(scored.z));
        }
        Ok(NodeScore::Unscored(reason)) => {
            add("unscored", json!(reason.to_string()));
        }
        Err(reason) => {
            add("unscored", json!(reason.unwrap_or_default()));
        }
    }
    Value::Object(fields)
}
