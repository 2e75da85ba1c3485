//! `ebm-prover compare`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use ebm_search::record::{TheoremSummary, read_summaries};
use serde_json::json;

use crate::outcome::Outcome;

/// Theorems that are listed.
const SHOWN: usize = 20;

/// Compare two searches: theorems that the second proved and the first did not, and the reverse.
///
/// Takes trajectory files of `ebm-prover search`, or of other software with finished proofs in them.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The first search.
    #[arg(value_name = "A.parquet")]
    first: PathBuf,
    /// The second search.
    #[arg(value_name = "B.parquet")]
    second: PathBuf,
    /// Print the result as JSON, with all theorems.
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(crate) fn run(&self, out: &mut impl Write) -> anyhow::Result<Outcome> {
        let (first, second) = (read_summaries(&self.first)?, read_summaries(&self.second)?);
        let both: Vec<(&TheoremSummary, &TheoremSummary)> =
            first.iter().filter_map(|(name, a)| Some((a, second.get(name)?))).collect();
        if both.is_empty() {
            bail!(
                "{} and {} have no theorem in common",
                self.first.display(),
                self.second.display()
            );
        }
        let named = |keep: fn(bool, bool) -> bool| -> Vec<&str> {
            let kept = both.iter().filter(|(a, b)| keep(a.solved(), b.solved()));
            kept.map(|(a, _)| a.theorem.as_str()).collect()
        };
        let gained = named(|a, b| !a && b);
        let lost = named(|a, b| a && !b);
        let kept = named(|a, b| a && b).len();
        let saved = saved(&both);
        let solved = |all: &BTreeMap<String, TheoremSummary>| {
            all.values().filter(|theorem| theorem.solved()).count()
        };
        if self.json {
            let result = json!({
                "first": { "theorems": first.len(), "solved": solved(&first) },
                "second": { "theorems": second.len(), "solved": solved(&second) },
                "common": both.len(),
                "gained": gained,
                "lost": lost,
                "solved_by_both": kept,
                "mean_expansions_saved": saved,
            });
            writeln!(out, "{result}")?;
            return Ok(Outcome::Good);
        }
        for (path, all) in [(&self.first, &first), (&self.second, &second)] {
            writeln!(out, "{}: {} of {} solved", path.display(), solved(all), all.len())?;
        }
        let (only_first, only_second) = (first.len() - both.len(), second.len() - both.len());
        if only_first + only_second > 0 {
            writeln!(
                out,
                "{} theorems in common; {only_first} only in the first file, {only_second} only in \
                 the second",
                both.len()
            )?;
        }
        writeln!(out, "solved by both: {kept}")?;
        if let Some(saved) = saved {
            let what = if saved < 0.0 { "more" } else { "fewer" };
            writeln!(out, "the second needs {:.1} expansions {what} for these", saved.abs())?;
        }
        for (what, theorems) in [("gained", &gained), ("lost", &lost)] {
            writeln!(out, "{what}: {}", theorems.len())?;
            for theorem in theorems.iter().take(SHOWN) {
                writeln!(out, "  {theorem}")?;
            }
            if theorems.len() > SHOWN {
                writeln!(out, "  ... {} more; --json lists all", theorems.len() - SHOWN)?;
            }
        }
        Ok(Outcome::Good)
    }
}

/// Mean of the expansions to the proof that the second search saved, where both proved a theorem.
fn saved(both: &[(&TheoremSummary, &TheoremSummary)]) -> Option<f64> {
    let differences: Vec<f64> = both
        .iter()
        .filter_map(|(a, b)| Some(a.proof_expansions? as f64 - b.proof_expansions? as f64))
        .collect();
    (!differences.is_empty()).then(|| differences.iter().sum::<f64>() / differences.len() as f64)
}
