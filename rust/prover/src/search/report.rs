//! What a search prints when it has ended.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use ebm_search::record::TheoremSummary;
use ebm_search::search::{Stage, Timings};
use serde_json::{Map, Value, json};

use super::Written;
use super::tally::Tally;

/// Budgets of expansions for which solved theorems are counted.
const WITHIN: [u64; 4] = [8, 16, 32, 64];

/// A run of searches.
pub(super) struct Report {
    /// The theorems that were asked for, as far as their searches are complete.
    finished: BTreeMap<String, TheoremSummary>,
    /// Number of theorems that were asked for.
    asked: usize,
    /// Theorems whose searches an earlier run completed.
    resumed: usize,
    /// Searches of this run.
    searched: usize,
    /// Searches that failed.
    failed: usize,
    unscored: u64,
    without_candidates: u64,
    false_proofs: u64,
    cut_short: u64,
    /// Of this run.
    expansions: u64,
    wall: Duration,
    timings: Timings,
    output: Option<(PathBuf, u64)>,
    settings: Value,
}

impl Report {
    pub(super) fn new(
        asked: &[String],
        resumed: usize,
        tally: Tally,
        written: Option<Written>,
        wall: Duration,
        timings: Timings,
        settings: Value,
    ) -> Self {
        let names: HashSet<&String> = asked.iter().collect();
        let (output, finished) = match written {
            Some(written) => (Some((written.path, written.rows)), written.theorems),
            None => (None, tally.finished),
        };
        let finished = finished.into_iter().filter(|one| names.contains(&one.theorem));
        Self {
            finished: finished.map(|one| (one.theorem.clone(), one)).collect(),
            asked: asked.len(),
            resumed,
            searched: tally.searched,
            failed: tally.failed,
            unscored: tally.unscored,
            without_candidates: tally.without_candidates,
            false_proofs: tally.false_proofs,
            cut_short: tally.cut_short,
            expansions: tally.expansions,
            wall,
            timings,
            output,
            settings,
        }
    }

    fn solved(&self) -> usize {
        self.finished.values().filter(|theorem| theorem.solved()).count()
    }

    fn solved_within(&self, expansions: u64) -> usize {
        let within = |theorem: &&TheoremSummary| {
            theorem.proof_expansions.is_some_and(|needed| needed <= expansions)
        };
        self.finished.values().filter(within).count()
    }

    /// Mean expansions of proofs, of the theorems that were proved.
    fn mean_expansions(&self) -> Option<f64> {
        let needed: Vec<u64> =
            self.finished.values().filter_map(|theorem| theorem.proof_expansions).collect();
        (!needed.is_empty()).then(|| needed.iter().sum::<u64>() as f64 / needed.len() as f64)
    }

    fn share(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.timings.total().as_secs_f64().max(f64::MIN_POSITIVE)
    }

    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let attempted = self.finished.len() + self.failed;
        let percent = 100.0 * self.solved() as f64 / attempted.max(1) as f64;
        write!(out, "solved      {} of {attempted} ({percent:.1} %)", self.solved())?;
        let within: Vec<String> = WITHIN
            .iter()
            .map(|budget| format!("{} within {budget}", self.solved_within(*budget)))
            .collect();
        writeln!(out, "; {} expansions", within.join(", "))?;
        if let Some(mean) = self.mean_expansions() {
            writeln!(out, "proofs      after {mean:.1} expansions on average")?;
        }
        let rest = self.asked - self.finished.len() - self.failed;
        let notes = [
            (self.resumed, "finished in an earlier run"),
            (self.failed, "failed"),
            (rest, "not searched"),
        ];
        let notes: Vec<String> = notes
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !notes.is_empty() {
            writeln!(out, "theorems    {} asked for: {}", self.asked, notes.join(", "))?;
        }
        let faults = [
            (self.unscored, "states without a score, ranked by the policy alone"),
            (self.without_candidates, "states without candidates"),
            (self.false_proofs, "false proofs refused"),
            (
                self.cut_short,
                "proofs after which the search failed, so that their records are cut short",
            ),
        ];
        for (count, what) in faults.iter().filter(|(count, _)| *count > 0) {
            writeln!(out, "            {count} {what}")?;
        }
        let rate = self.expansions as f64 / self.wall.as_secs_f64().max(f64::MIN_POSITIVE);
        writeln!(
            out,
            "expansions  {} in {:.1?}: {rate:.0} per second, {:.1} theorems per minute",
            self.expansions,
            self.wall,
            60.0 * self.searched as f64 / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
        )?;
        self.print_stages(out)?;
        if let Some((path, rows)) = &self.output {
            writeln!(out, "output      {}: {rows} rows", path.display())?;
        }
        Ok(())
    }

    fn print_stages(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nstage          calls    time  share       p50       p95       p99")?;
        for stage in Stage::ALL {
            let times = self.timings.stage(stage);
            if times.calls() == 0 {
                continue;
            }
            writeln!(
                out,
                "{:<12} {:>7} {:>7} {:>5.1}% {:>9} {:>9} {:>9}",
                stage.name(),
                times.calls(),
                format!("{:.1?}", times.total()),
                100.0 * self.share(times.total()),
                format!("{:.1?}", times.quantile(0.5)),
                format!("{:.1?}", times.quantile(0.95)),
                format!("{:.1?}", times.quantile(0.99)),
            )?;
        }
        let own = self.timings.own();
        let each = own.checked_div(u32::try_from(self.expansions).unwrap_or(u32::MAX));
        writeln!(
            out,
            "{:<12} {:>7} {:>7} {:>5.1}% {:>9} per expansion",
            "search",
            "",
            format!("{own:.1?}"),
            100.0 * self.share(own),
            format!("{:.1?}", each.unwrap_or_default()),
        )
    }

    pub(super) fn to_json(&self) -> Value {
        let mut stages = Map::new();
        for stage in Stage::ALL {
            let times = self.timings.stage(stage);
            let ms = |share: f64| times.quantile(share).as_secs_f64() * 1e3;
            stages.insert(
                stage.name().to_owned(),
                json!({
                    "calls": times.calls(),
                    "seconds": times.total().as_secs_f64(),
                    "share": self.share(times.total()),
                    "p50_ms": ms(0.5), "p95_ms": ms(0.95), "p99_ms": ms(0.99),
                }),
            );
        }
        let within: Map<String, Value> = WITHIN
            .iter()
            .map(|budget| (budget.to_string(), json!(self.solved_within(*budget))))
            .collect();
        json!({
            "asked": self.asked,
            "attempted": self.finished.len() + self.failed,
            "resumed": self.resumed,
            "failed": self.failed,
            "solved": self.solved(),
            "solved_within": within,
            "mean_expansions_to_proof": self.mean_expansions(),
            "expansions": self.expansions,
            "unscored": self.unscored,
            "without_candidates": self.without_candidates,
            "false_proofs": self.false_proofs,
            "cut_short": self.cut_short,
            "seconds": self.wall.as_secs_f64(),
            "search_seconds": self.timings.total().as_secs_f64(),
            "own_seconds": self.timings.own().as_secs_f64(),
            "expansions_per_second": self.expansions as f64 / self.wall.as_secs_f64(),
            "stages": stages,
            "settings": self.settings,
            "output": self.output.as_ref().map(|(path, rows)| {
                json!({ "path": path.display().to_string(), "rows": rows })
            }),
            "theorems": self.finished.values().collect::<Vec<_>>(),
        })
    }
}
