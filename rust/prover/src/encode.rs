//! `ebm-prover encode`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ebm_encoder::{Encoder, Report};
use serde_json::json;

use crate::model::{ModelArguments, PythonArguments};
use crate::outcome::Outcome;
use crate::states::{States, read_states};
use crate::text::{one_line, warn};

/// Encode states in one call through the bridge, to check a set-up.
#[derive(Debug, Args)]
pub(crate) struct Encode {
    /// The model's folder, or its hub id.
    #[arg(long, value_name = "DIR_OR_HUB_ID", required_unless_present = "backend")]
    model_path: Option<String>,
    /// A .parquet file with a column `state_pp`, a .jsonl file with a field `state_pp`, or any other
    /// file, which is one state.
    #[arg(long, value_name = "FILE")]
    states: PathBuf,
    /// Print one JSON object per state, with its embedding.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    python: PythonArguments,
    #[command(flatten)]
    model: ModelArguments,
}

impl Encode {
    pub(crate) fn run(&self, out: &mut impl Write) -> anyhow::Result<Outcome> {
        self.model.check(self.model_path.as_deref(), false)?;
        let States { mut texts, without_text } = read_states(&self.states)?;
        if without_text > 0 {
            warn(&format!("{without_text} rows without a state are skipped"));
        }
        let conversion = self.model.formats.conversion(texts.iter().map(String::as_str))?;
        texts.iter_mut().try_for_each(|state| conversion.apply(state))?;
        let states: Vec<&str> = texts.iter().map(String::as_str).collect();
        let encoder = self.model.load(&self.python, self.model_path.as_deref())?;
        let dim = encoder.dim();
        let mut rows = vec![f32::NAN; states.len() * dim];
        let start = Instant::now();
        let reports = encoder.encode_into(&states, &mut rows)?;
        let took = start.elapsed();
        for ((state, report), row) in states.iter().zip(&reports).zip(rows.chunks(dim)) {
            if self.json {
                writeln!(out, "{}", as_json(state, report, row))?;
            } else {
                writeln!(out, "{}\n  {}", one_line(state), as_text(report, row))?;
            }
        }
        let right = reports.iter().filter(|report| report.is_ok()).count();
        if !self.json {
            let rate = states.len() as f64 / took.as_secs_f64();
            writeln!(out, "\n{right} of {} states encoded, {dim} values each", states.len())?;
            writeln!(out, "in one call of {took:.1?}: {rate:.0} states/s")?;
            writeln!(out, "encoder {}", encoder.identity().digest())?;
        }
        Ok(if right == states.len() { Outcome::Good } else { Outcome::CheckFailed })
    }
}

fn as_text(report: &Report, row: &[f32]) -> String {
    let prompt = match report {
        Ok(prompt) => prompt,
        Err(reason) => return format!("no embedding: {reason}"),
    };
    let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
    let first: Vec<String> = row.iter().take(4).map(|value| format!("{value:.4}")).collect();
    let cut = if prompt.truncated { ", cut" } else { "" };
    format!("{} tokens{cut}, norm {norm:.4}, [{}, ...]", prompt.tokens, first.join(", "))
}

fn as_json(state: &str, report: &Report, row: &[f32]) -> serde_json::Value {
    match report {
        Ok(prompt) => json!({
            "state_pp": state,
            "tokens": prompt.tokens,
            "truncated": prompt.truncated,
            "embedding": row,
        }),
        Err(reason) => json!({"state_pp": state, "error": reason.to_string()}),
    }
}
