//! What a bad row is: the one definition that writer, reader, audit and search share.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use crate::check::equal_rows::{EqualRows, cell};
use crate::check::norms::NormRange;
use crate::check::sketch::{RowStats, Sketcher, WIDTH};
use crate::format::bad_row::BadRow;
use crate::format::footer::StateKey;
use crate::format::same_tokens::SameTokens;
use ebm_threads::spread;

/// A norm below this is zero.
const SMALLEST_NORM: f32 = 1e-6;
/// Rows nearer than this, relative to their norm, are equal up to rounding. One token more or less
/// changes a mean over `n` tokens by about `1 / n`, so different texts stay far above it.
const EQUAL: f32 = 2e-6;
/// Two rows of one state may be this far apart, relative to their norm: cosine 0.9995, the bound
/// for one prompt encoded twice in a 16-bit dtype.
const SAME_STATE: f32 = 0.0316;

/// Checks rows as they come, against themselves and all rows accepted before.
///
/// Of any two accepted rows of different states that equal each other up to rounding, the states have the
/// same tokens; so rows that a checker has accepted are accepted by any other, in any order.
///
/// Keeps about 200 bytes for each accepted row, whatever the dimension.
#[derive(Debug, Clone)]
pub struct RowChecker {
    dim: usize,
    sketcher: Sketcher,
    same_tokens: Arc<SameTokens>,
    seen: u64,
    accepted: Vec<Accepted>,
    norms: Vec<f32>,
    /// The last accepted row of each state.
    of_state: HashMap<StateKey, usize>,
    equal: EqualRows,
    usual: Option<NormRange>,
    usual_of: usize,
}

#[derive(Debug, Clone)]
struct Accepted {
    key: StateKey,
    row: u64,
    sketch: [f32; WIDTH],
    /// The accepted row of the same state before this one.
    earlier: Option<usize>,
    retracted: bool,
}

/// What to do with a row that differs from an earlier one of the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnConflict {
    Refuse,
    TakeLater,
}

/// A later row of a state that was taken, and why the one before it is bad, if they differ.
pub(crate) type Taken = Result<Option<BadRow>, BadRow>;

/// An accepted row whose norm proved to be far from that of all others.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlier {
    /// The row's state.
    pub state: StateKey,
    /// The row's number, in the order in which the checker saw the rows.
    pub row: u64,
    /// Always [`BadRow::NormOutlier`].
    pub reason: BadRow,
}

impl RowChecker {
    /// A checker of rows of `dim` values.
    #[must_use]
    pub fn new(dim: usize) -> Self {
        Self::with_same_tokens(dim, SameTokens::default())
    }

    pub(crate) fn with_same_tokens(dim: usize, same_tokens: impl Into<Arc<SameTokens>>) -> Self {
        Self {
            dim,
            sketcher: Sketcher::new(),
            same_tokens: same_tokens.into(),
            seen: 0,
            accepted: Vec::new(),
            norms: Vec::new(),
            of_state: HashMap::new(),
            equal: EqualRows::default(),
            usual: None,
            usual_of: 0,
        }
    }

    /// Notes that two states have the same tokens, so that their rows are rightly equal.
    pub fn allow_equal(&mut self, left: StateKey, right: StateKey) {
        Arc::make_mut(&mut self.same_tokens).add(left, right);
    }

    /// Checks `rows` (`keys.len() x dim`, row-major) and remembers those that are good.
    ///
    /// Returns, for each row, why it is bad, if it is. Rows are numbered from 0 in the order in
    /// which this checker sees them, over all calls, good or bad. Norms are compared with those of all
    /// rows so far, so this verdict may depend on what came before; see
    /// [`RowChecker::check_without_norms`].
    ///
    /// # Panics
    /// If `rows` does not hold `keys.len()` rows.
    pub fn check(&mut self, keys: &[StateKey], rows: &[f32]) -> Vec<Result<(), BadRow>> {
        let stats = self.measure(keys, rows);
        let usual = self.usual_norms(&stats);
        self.check_each(keys, &stats, rows, usual, OnConflict::Refuse)
            .map(|row| row.map(drop))
            .collect()
    }

    /// The same, without comparing norms: so a row's verdict depends on no other row, but those that it
    /// equals and those of the same state. [`RowChecker::norm_outliers`] compares the norms in the end.
    ///
    /// # Panics
    /// If `rows` does not hold `keys.len()` rows.
    pub fn check_without_norms(
        &mut self,
        keys: &[StateKey],
        rows: &[f32],
    ) -> Vec<Result<(), BadRow>> {
        let stats = self.measure(keys, rows);
        self.check_measured(keys, &stats, rows)
    }

    /// The same, of rows that were measured when they were read.
    pub(crate) fn check_measured(
        &mut self,
        keys: &[StateKey],
        stats: &[RowStats],
        rows: &[f32],
    ) -> Vec<Result<(), BadRow>> {
        self.check_each(keys, stats, rows, None, OnConflict::Refuse)
            .map(|row| row.map(drop))
            .collect()
    }

    /// The same, but of two rows of a state that differ the earlier one is forgotten and the later one
    /// taken.
    pub(crate) fn check_later(&mut self, keys: &[StateKey], rows: &[f32]) -> Vec<Taken> {
        let stats = self.measure(keys, rows);
        self.check_each(keys, &stats, rows, None, OnConflict::TakeLater).collect()
    }

    fn measure(&mut self, keys: &[StateKey], rows: &[f32]) -> Vec<RowStats> {
        assert_eq!(rows.len(), keys.len() * self.dim, "one row of {} values per key", self.dim);
        if keys.is_empty() {
            return Vec::new();
        }
        self.sketcher.prepare(self.dim);
        let (dim, sketcher) = (self.dim, &self.sketcher);
        let row = |i: usize| &rows[i * dim..(i + 1) * dim];
        spread(|| (0..keys.len()).into_par_iter().map(|i| sketcher.stats(row(i))).collect())
    }

    fn check_each(
        &mut self,
        keys: &[StateKey],
        stats: &[RowStats],
        rows: &[f32],
        usual: Option<NormRange>,
        on_conflict: OnConflict,
    ) -> impl Iterator<Item = Taken> {
        let dim = self.dim;
        let each = keys.iter().zip(stats).enumerate();
        each.map(move |(i, (key, stats))| {
            let row = self.seen;
            self.seen += 1;
            good_by_itself(&rows[i * dim..(i + 1) * dim], stats, usual)?;
            self.accept(*key, row, stats, on_conflict)
        })
    }

    /// Why a row of a state cannot be one beside the accepted row of the same state, if they differ.
    pub(crate) fn conflict(&mut self, key: StateKey, values: &[f32]) -> Option<BadRow> {
        let index = *self.of_state.get(&key)?;
        let stats = self.measure(&[key], values).pop()?;
        let row = self.accepted[index].row;
        (!self.agrees(index, &stats)).then_some(BadRow::Conflict { row })
    }

    /// Whether a row of a state was accepted and not forgotten.
    #[must_use]
    pub fn has(&self, key: StateKey) -> bool {
        self.of_state.contains_key(&key)
    }

    /// Forgets the accepted rows of a state, so that another may take their place.
    pub fn retract(&mut self, key: StateKey) {
        let mut next = self.of_state.remove(&key);
        while let Some(index) = next {
            next = self.accepted[index].earlier;
            self.forget(index);
        }
    }

    /// Forgets the accepted rows of a state but the last.
    pub(crate) fn retract_earlier(&mut self, key: StateKey) {
        let Some(&last) = self.of_state.get(&key) else { return };
        let mut next = self.accepted[last].earlier.take();
        while let Some(index) = next {
            next = self.accepted[index].earlier;
            self.forget(index);
        }
    }

    fn forget(&mut self, index: usize) {
        let accepted = &mut self.accepted[index];
        accepted.retracted = true;
        self.equal.remove(index, cell(&accepted.sketch, EQUAL));
    }

    /// Accepted rows whose norm is far outside what is usual among all others: without these, none is.
    #[must_use]
    pub fn norm_outliers(&self) -> Vec<Outlier> {
        let all = 0..self.accepted.len();
        let mut usual: Vec<usize> = all.filter(|index| !self.accepted[*index].retracted).collect();
        let mut found = Vec::new();
        loop {
            let norms: Vec<f32> = usual.iter().map(|index| self.norms[*index]).collect();
            let Some(range) = NormRange::of(&norms) else { break };
            let inside = |index: &usize| range.contains(self.norms[*index]);
            let (inside, outside): (Vec<usize>, Vec<usize>) = usual.into_iter().partition(inside);
            if outside.is_empty() {
                break;
            }
            found.extend(outside.into_iter().map(|index| self.outlier(index, range.median)));
            usual = inside;
        }
        found.sort_by_key(|outlier| outlier.row);
        found
    }

    fn outlier(&self, index: usize, median: f32) -> Outlier {
        let Accepted { key, row, .. } = self.accepted[index];
        let reason = BadRow::NormOutlier { norm: self.norms[index], median };
        Outlier { state: key, row, reason }
    }

    /// Norms of the accepted rows, in order.
    #[must_use]
    pub fn norms(&self) -> &[f32] {
        &self.norms
    }

    pub(crate) fn same_tokens(&self) -> &SameTokens {
        &self.same_tokens
    }

    /// Accepts a row that is good by itself, unless it equals another state's or, if so wanted, differs
    /// from another of its state.
    fn accept(
        &mut self,
        key: StateKey,
        row: u64,
        stats: &RowStats,
        on_conflict: OnConflict,
    ) -> Taken {
        let earlier = self.of_state.get(&key).copied();
        let differs = earlier.is_some_and(|index| !self.agrees(index, stats));
        if differs && on_conflict == OnConflict::Refuse {
            let row = earlier.map_or(0, |index| self.accepted[index].row);
            return Err(BadRow::Conflict { row });
        }
        let cell = cell(&stats.sketch, EQUAL);
        let is_twin = |other: usize| {
            let other = self.accepted[other].key;
            other == key || self.same_tokens.same(other, key)
        };
        if let Some(other) = self.equal.find(cell, is_twin, |other| self.equals(other, stats)) {
            let Accepted { key: of, row, .. } = self.accepted[other];
            return Err(BadRow::Duplicate { of, row });
        }
        let index = self.accepted.len();
        self.equal.insert(index, cell, is_twin);
        self.of_state.insert(key, index);
        let sketch = stats.sketch;
        self.accepted.push(Accepted { key, row, sketch, earlier, retracted: false });
        self.norms.push(stats.norm);
        if differs {
            self.retract_earlier(key);
        }
        Ok(differs.then_some(BadRow::Conflict { row }))
    }

    /// Whether an accepted row equals a new one up to rounding; the same from either side.
    fn equals(&self, index: usize, stats: &RowStats) -> bool {
        self.within(index, stats, EQUAL)
    }

    /// Whether an accepted row may be a row of the same state as a new one.
    fn agrees(&self, index: usize, stats: &RowStats) -> bool {
        self.within(index, stats, SAME_STATE)
    }

    fn within(&self, index: usize, stats: &RowStats, tolerance: f32) -> bool {
        let (left, right) = (self.norms[index], stats.norm);
        (left - right).abs() <= tolerance * left.min(right)
            && distance(&self.accepted[index].sketch, &stats.sketch) <= tolerance
    }

    /// The usual norms among accepted and new rows; computed again when the rows grew by a tenth.
    fn usual_norms(&mut self, new: &[RowStats]) -> Option<NormRange> {
        if new.is_empty() {
            return self.usual;
        }
        let total = self.norms.len() + new.len();
        if self.usual.is_none() || total > self.usual_of + self.usual_of / 10 {
            let good = new.iter().filter(|stats| stats.finite && stats.norm >= SMALLEST_NORM);
            let norms: Vec<f32> =
                self.norms.iter().copied().chain(good.map(|stats| stats.norm)).collect();
            self.usual = NormRange::of(&norms);
            self.usual_of = total;
        }
        self.usual
    }
}

/// What is wrong with a row whatever the others are, but for their usual norms.
fn good_by_itself(
    values: &[f32],
    stats: &RowStats,
    usual: Option<NormRange>,
) -> Result<(), BadRow> {
    if !stats.finite {
        let found = values.iter().enumerate().find(|(_, value)| !value.is_finite());
        let (column, value) = found.map_or((0, f32::NAN), |(i, value)| (i, *value));
        return Err(BadRow::NonFinite { column, value });
    }
    let norm = stats.norm;
    if norm < SMALLEST_NORM {
        return Err(BadRow::ZeroNorm { norm });
    }
    match usual.filter(|usual| !usual.contains(norm)) {
        Some(usual) => Err(BadRow::NormOutlier { norm, median: usual.median }),
        None => Ok(()),
    }
}

/// Checks the rows of one call (`states.len() x dim`, row-major) among themselves.
///
/// `tokens` are the states' token ids; states of the same tokens may have equal rows. Norms are not
/// compared, so that a state's verdict does not depend on what else is in the call: what is usual shows
/// among the rows of a whole cache, where writer and audit compare them.
///
/// # Panics
/// If `rows` or `tokens` do not belong to as many states.
#[must_use]
pub fn check_rows(
    states: &[&str],
    tokens: &[&[u32]],
    rows: &[f32],
    dim: usize,
) -> Vec<Result<(), BadRow>> {
    assert_eq!(states.len(), tokens.len(), "one token sequence per state");
    let keys: Vec<StateKey> = states.iter().map(|state| StateKey::of(state)).collect();
    let mut checker = RowChecker::new(dim);
    let mut first_with: HashMap<&[u32], StateKey> = HashMap::new();
    for (tokens, key) in tokens.iter().zip(&keys) {
        checker.allow_equal(*first_with.entry(tokens).or_insert(*key), *key);
    }
    checker.check_without_norms(&keys, rows)
}

fn distance(left: &[f32; WIDTH], right: &[f32; WIDTH]) -> f32 {
    left.iter().zip(right).map(|(l, r)| (l - r).powi(2)).sum::<f32>().sqrt()
}
