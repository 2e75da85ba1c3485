//! What the searches did, as they come in.

use anyhow::bail;
use ebm_search::record::{TheoremSummary, TrajectoryWriter};
use ebm_search::search::{Ended, SearchError, SearchResult};
use indicatif::ProgressBar;

use super::policies::in_options;
use crate::outcome::Outcome;
use crate::text::{one_line, warn};

/// Searches that failed, and states with a fault, that are shown.
const SHOWN: usize = 5;

/// Counts over the searches that ended.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) searched: usize,
    pub(super) failed: usize,
    /// Searches with a proof after which something failed, so that their records are not complete.
    pub(super) cut_short: u64,
    pub(super) expansions: u64,
    pub(super) unscored: u64,
    pub(super) without_candidates: u64,
    pub(super) false_proofs: u64,
    pub(super) finished: Vec<TheoremSummary>,
    solved: usize,
    shown: usize,
    knows_all: bool,
}

impl Tally {
    /// `knows_all`: whether the policy should have candidates for every state.
    pub(super) fn new(knows_all: bool) -> Self {
        Self { knows_all, ..Self::default() }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let silent = self.knows_all && self.without_candidates > 0;
        let faults = self.failed > 0 || self.cut_short > 0 || self.unscored > 0 || silent;
        if faults { Outcome::CheckFailed } else { Outcome::Good }
    }

    /// Takes a result as it comes in.
    pub(super) fn take(
        &mut self,
        search: &SearchResult,
        writer: Option<&mut TrajectoryWriter>,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        self.count(search);
        self.show_faults(search, bar);
        let failed = match &search.ended {
            Ended::Failed(error) => Some(error),
            _ => search.failed_after_proof.as_ref(),
        };
        let complete = search.ended.is_complete();
        match writer {
            Some(writer) => writer.add(search)?,
            None if complete => self.finished.push(TheoremSummary::of(search, 0)),
            None => {}
        }
        if let Some(error) = failed {
            let said = match error {
                SearchError::Policy(error) => in_options(error),
                other => other.to_string(),
            };
            if error.concerns_all() {
                bail!("{said}");
            }
            self.show(bar, &failure(search, &said));
        }
        bar.set_message(format!("{} solved", self.solved));
        bar.inc(1);
        Ok(())
    }

    fn count(&mut self, search: &SearchResult) {
        self.searched += 1;
        self.expansions += search.expansions();
        self.unscored += search.unscored;
        self.without_candidates += search.without_candidates;
        self.false_proofs += search.false_proofs.len() as u64;
        self.solved += usize::from(search.proof.is_some());
        self.failed += usize::from(matches!(search.ended, Ended::Failed(_)));
        self.cut_short += u64::from(search.failed_after_proof.is_some());
    }

    fn show_faults(&mut self, search: &SearchResult, bar: &ProgressBar) {
        if self.knows_all || search.unscored > 0 {
            for complaint in &search.complaints {
                self.show(bar, &format!("{}: {complaint}", search.theorem));
            }
        }
        for proof in &search.false_proofs {
            let tactics = one_line(&proof.tactics.join("\n"));
            self.show(bar, &format!("{}: no proof: {}: {tactics}", search.theorem, proof.reason));
        }
    }

    fn show(&mut self, bar: &ProgressBar, line: &str) {
        if self.shown < SHOWN {
            bar.suspend(|| warn(line));
            self.shown += 1;
        }
    }
}

fn failure(search: &SearchResult, error: &str) -> String {
    let theorem = &search.theorem;
    match search.ended {
        Ended::Failed(_) => format!("{theorem}: failed: {error}"),
        _ => format!("{theorem}: proved, and its record after the proof is cut short: {error}"),
    }
}
