//! What the files of a writer say of themselves: whose rows they hold, and which may be equal.

use std::ops::Range;

use serde_json::Value;

use super::CacheWriter;
use crate::file::reader::RowFile;
use crate::format::footer::{Footer, StateKey};
use crate::format::runs::{Run, tidy};
use crate::format::schema::FORMAT_VERSION;

/// Whose rows come from a number on, up to the next origin's.
#[derive(Debug)]
pub(super) struct Origin {
    first: u64,
    /// The run that made them; `None` for this one.
    run: Option<Value>,
}

/// Up to which pair of states with the same tokens files that stand know of them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct KnownPairs {
    /// The files of the output.
    pub(super) output: usize,
    /// The checkpoints of the growing file.
    pub(super) grown: usize,
    /// All checkpoints.
    pub(super) saved: usize,
}

impl CacheWriter {
    /// The rows from here on are another run's.
    pub(super) fn begin_rows_of(&mut self, run: Option<Value>) {
        self.origins.push(Origin { first: self.total, run });
    }

    /// The rows from here on are this run's.
    pub(super) fn begin_own_rows(&mut self) {
        self.begin_rows_of(None);
    }

    /// Notes who made the rows of a file, the first of which has the number `first`.
    pub(super) fn note_runs(&mut self, file: &RowFile, first: u64, is_shard: bool) {
        let (mut at, end) = (first, first + file.num_rows() as u64);
        let runs =
            file.footer().map(|footer| if is_shard { footer.runs.clone() } else { footer.runs() });
        for Run { rows, provenance } in runs.unwrap_or_default() {
            // Shards say null of the rows of the run that wrote them.
            let run = (!is_shard || provenance != Value::Null).then_some(provenance);
            self.origins.push(Origin { first: at, run });
            at = at.saturating_add(rows).min(end);
        }
        self.origins.push(Origin { first: end, run: None });
    }

    /// Forgets who made the rows from a number on.
    pub(super) fn forget_runs_from(&mut self, first: u64) {
        self.origins.retain(|origin| origin.first < first);
    }

    /// The footer of a checkpoint of some rows, those of `states`.
    pub(super) fn shard_footer<'a>(
        &self,
        rows: Range<u64>,
        states: impl Iterator<Item = &'a str>,
        known: usize,
    ) -> Footer {
        let count = |of: Range<u64>| of.end.min(rows.end).saturating_sub(of.start.max(rows.start));
        let runs = self.runs(count, &Value::Null);
        let own = runs.iter().all(|run| run.provenance == Value::Null);
        let states: Vec<StateKey> = states.map(StateKey::of).collect();
        let counts = |(number, key): &(u64, &StateKey)| self.current.get(*key) == Some(number);
        let dead = (rows.start..).zip(&states).filter(|row| !counts(row));
        let dead = dead.map(|(number, _)| number - rows.start).collect();
        let pairs = self.checker.same_tokens().of_rows(states.iter().copied(), known);
        Footer {
            format_version: FORMAT_VERSION,
            dim: self.dim,
            rows: rows.end - rows.start,
            identity: self.identity.clone(),
            provenance: Value::Null,
            runs: if own { Vec::new() } else { runs },
            same_tokens: pairs,
            taken_back: self.withdrawn_before(rows.start),
            dead,
        }
    }

    /// The footer of an output or a part that has all rows from a number on that count.
    pub(super) fn output_footer(&self, rows: u64, first: u64, provenance: &Value) -> Footer {
        let live = self.current.iter().filter(|(_, number)| **number >= first);
        let (states, mut numbers): (Vec<StateKey>, Vec<u64>) = live.unzip();
        numbers.sort_unstable();
        let before = |number: u64| numbers.partition_point(|other| *other < number) as u64;
        let runs = self.runs(|of| before(of.end) - before(of.start), provenance);
        let own = runs.iter().all(|run| run.provenance == *provenance);
        // Files that the new one replaces know of no pair that counts.
        let tokens = self.checker.same_tokens();
        let known = if first == 0 { tokens.len() } else { self.known_pairs.output };
        Footer {
            format_version: FORMAT_VERSION,
            dim: self.dim,
            rows,
            identity: self.identity.clone(),
            provenance: provenance.clone(),
            runs: if own { Vec::new() } else { runs },
            same_tokens: tokens.of_rows(states.into_iter(), known),
            taken_back: Vec::new(),
            dead: Vec::new(),
        }
    }

    /// Keys of states whose rows before a number were taken back; sorted.
    fn withdrawn_before(&self, number: u64) -> Vec<String> {
        let counts = |key: &StateKey| self.current.get(key).is_some_and(|row| *row < number);
        let keys = self.withdrawn.iter().filter(|key| !counts(key));
        let mut keys: Vec<String> = keys.map(|key| key.to_hex()).collect();
        keys.sort_unstable();
        keys
    }

    /// The runs of rows that `count` counts by number; `own` stands for this one.
    fn runs(&self, count: impl Fn(Range<u64>) -> u64, own: &Value) -> Vec<Run> {
        let ends = self.origins.iter().skip(1).map(|origin| origin.first).chain([u64::MAX]);
        let runs = self.origins.iter().zip(ends).map(|(Origin { first, run }, end)| {
            let provenance = run.as_ref().unwrap_or(own).clone();
            Run::new(count(*first..end), provenance)
        });
        tidy(runs)
    }
}
