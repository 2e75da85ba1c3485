//! What a bad row is: the one definition that writer, reader, audit and search share.

use std::collections::HashMap;
use std::fmt;

use rayon::prelude::*;

use super::footer::{SameTokens, StateKey};
use super::norms::NormRange;
use super::sketch::{RowStats, Sketcher, WIDTH};
use crate::threads::spread;

/// A norm below this is zero.
const SMALLEST_NORM: f32 = 1e-6;
/// Rows nearer than this, relative to their norm, are equal up to rounding. One token more or less
/// changes a mean over `n` tokens by about `1 / n`, so different texts stay far above it.
const EQUAL: f32 = 2e-6;
/// Two rows of one state may be this far apart, relative to their norm: cosine 0.9995, the bound
/// for one prompt encoded twice in a 16-bit dtype.
const SAME_STATE: f32 = 0.0316;

/// Why a row is bad.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum BadRow {
    /// A value is NaN or infinite.
    NonFinite {
        /// The first such column.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// The norm is zero or as good as zero.
    ZeroNorm {
        /// The norm.
        norm: f32,
    },
    /// The norm is far outside what is usual among the other rows.
    NormOutlier {
        /// The norm.
        norm: f32,
        /// The median norm of the other rows.
        median: f32,
    },
    /// The row equals, up to rounding, the row of another state with other tokens.
    Duplicate {
        /// The other state.
        of: StateKey,
        /// The other row's number, in the order in which the checker saw the rows.
        row: u64,
    },
    /// The same state has another row that differs by more than rounding.
    Conflict {
        /// The other row's number, in the order in which the checker saw the rows.
        row: u64,
    },
}

impl BadRow {
    /// A short name for counting: `non_finite`, `zero_norm`, `norm_outlier`, `duplicate`, `conflict`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NonFinite { .. } => "non_finite",
            Self::ZeroNorm { .. } => "zero_norm",
            Self::NormOutlier { .. } => "norm_outlier",
            Self::Duplicate { .. } => "duplicate",
            Self::Conflict { .. } => "conflict",
        }
    }
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonFinite { column, value } => write!(f, "value {value} in column {column}"),
            Self::ZeroNorm { norm } => write!(f, "norm {norm:e} is zero"),
            Self::NormOutlier { norm, median } => {
                write!(f, "norm {norm:e} is far from the median {median:e}")
            }
            Self::Duplicate { row, .. } => {
                write!(f, "equal, up to rounding, to row {row}, which is another state's")
            }
            Self::Conflict { row } => write!(f, "differs from row {row} of the same state"),
        }
    }
}

/// Checks rows as they come, against themselves and all rows accepted before.
///
/// Keeps about 150 bytes for each accepted row, whatever the dimension.
#[derive(Debug, Clone)]
pub struct RowChecker {
    dim: usize,
    sketcher: Sketcher,
    same_tokens: SameTokens,
    seen: u64,
    accepted: Vec<Accepted>,
    norms: Vec<f32>,
    of_state: HashMap<StateKey, usize>,
    cells: HashMap<[i32; 2], Vec<usize>>,
    usual: Option<NormRange>,
    usual_of: usize,
}

#[derive(Debug, Clone)]
struct Accepted {
    key: StateKey,
    row: u64,
    sketch: [f32; WIDTH],
    retracted: bool,
}

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

    pub(super) fn with_same_tokens(dim: usize, same_tokens: SameTokens) -> Self {
        Self {
            dim,
            sketcher: Sketcher::new(),
            same_tokens,
            seen: 0,
            accepted: Vec::new(),
            norms: Vec::new(),
            of_state: HashMap::new(),
            cells: HashMap::new(),
            usual: None,
            usual_of: 0,
        }
    }

    /// Notes that two states have the same tokens, so that their rows are rightly equal.
    pub fn allow_equal(&mut self, left: StateKey, right: StateKey) {
        self.same_tokens.add(left, right);
    }

    /// Checks `rows` (`keys.len() x dim`, row-major) and remembers those that are good.
    ///
    /// Returns, for each row, why it is bad, if it is. Rows are numbered from 0 in the order in
    /// which this checker sees them, over all calls, good or bad.
    ///
    /// # Panics
    /// If `rows` does not hold `keys.len()` rows.
    pub fn check(&mut self, keys: &[StateKey], rows: &[f32]) -> Vec<Result<(), BadRow>> {
        assert_eq!(rows.len(), keys.len() * self.dim, "one row of {} values per key", self.dim);
        if keys.is_empty() {
            return Vec::new();
        }
        self.sketcher.prepare(self.dim);
        let (dim, sketcher) = (self.dim, &self.sketcher);
        let row = |i: usize| &rows[i * dim..(i + 1) * dim];
        let stats: Vec<RowStats> =
            spread(|| (0..keys.len()).into_par_iter().map(|i| sketcher.stats(row(i))).collect());
        self.check_measured(keys, &stats, rows)
    }

    /// The same, of rows that were measured when they were read.
    pub(super) fn check_measured(
        &mut self,
        keys: &[StateKey],
        stats: &[RowStats],
        rows: &[f32],
    ) -> Vec<Result<(), BadRow>> {
        let dim = self.dim;
        let usual = self.usual_norms(stats);
        let each = keys.iter().zip(stats).enumerate();
        each.map(|(i, (key, stats))| {
            self.check_row(*key, &rows[i * dim..(i + 1) * dim], stats, usual)
        })
        .collect()
    }

    /// Forgets the accepted row of a state, so that another may take its place.
    pub fn retract(&mut self, key: StateKey) {
        let Some(index) = self.of_state.remove(&key) else { return };
        self.accepted[index].retracted = true;
        if let Some(indices) = self.cells.get_mut(&cell(&self.accepted[index].sketch)) {
            indices.retain(|other| *other != index);
        }
    }

    /// Accepted rows whose norm is far outside what proved usual among all of them.
    #[must_use]
    pub fn norm_outliers(&self) -> Vec<Outlier> {
        let Some(usual) = NormRange::of(&self.norms) else { return Vec::new() };
        let outside = self.norms.iter().zip(&self.accepted);
        outside
            .filter(|(norm, accepted)| !accepted.retracted && !usual.contains(**norm))
            .map(|(&norm, accepted)| Outlier {
                state: accepted.key,
                row: accepted.row,
                reason: BadRow::NormOutlier { norm, median: usual.median },
            })
            .collect()
    }

    /// Norms of the accepted rows, in order.
    #[must_use]
    pub fn norms(&self) -> &[f32] {
        &self.norms
    }

    pub(super) fn same_tokens(&self) -> &SameTokens {
        &self.same_tokens
    }

    fn check_row(
        &mut self,
        key: StateKey,
        values: &[f32],
        stats: &RowStats,
        usual: Option<NormRange>,
    ) -> Result<(), BadRow> {
        let row = self.seen;
        self.seen += 1;
        if !stats.finite {
            let found = values.iter().enumerate().find(|(_, value)| !value.is_finite());
            let (column, value) = found.map_or((0, f32::NAN), |(i, value)| (i, *value));
            return Err(BadRow::NonFinite { column, value });
        }
        let norm = stats.norm;
        if norm < SMALLEST_NORM {
            return Err(BadRow::ZeroNorm { norm });
        }
        if let Some(usual) = usual.filter(|usual| !usual.contains(norm)) {
            return Err(BadRow::NormOutlier { norm, median: usual.median });
        }
        let same_state = self.of_state.get(&key).map(|&index| &self.accepted[index]);
        if let Some(other) = same_state.filter(|o| distance(&o.sketch, &stats.sketch) > SAME_STATE)
        {
            return Err(BadRow::Conflict { row: other.row });
        }
        let equal = self.equal_rows(stats);
        let is_twin = |other: &Accepted| other.key == key || self.same_tokens.same(other.key, key);
        if let Some(other) = equal.iter().map(|&i| &self.accepted[i]).find(|row| !is_twin(row)) {
            return Err(BadRow::Duplicate { of: other.key, row: other.row });
        }
        let has_twin = !equal.is_empty();
        let index = self.accepted.len();
        self.of_state.entry(key).or_insert(index);
        if !has_twin {
            // One of several rightly equal rows is enough to find what wrongly equals them.
            self.cells.entry(cell(&stats.sketch)).or_default().push(index);
        }
        self.accepted.push(Accepted { key, row, sketch: stats.sketch, retracted: false });
        self.norms.push(norm);
        Ok(())
    }

    /// The accepted rows that equal this one up to rounding.
    fn equal_rows(&self, stats: &RowStats) -> Vec<usize> {
        let [x, y] = cell(&stats.sketch);
        let around = (-1..=1).flat_map(|dx| (-1..=1).map(move |dy| (dx, dy)));
        let near = around
            .filter_map(|(dx, dy)| self.cells.get(&[x.saturating_add(dx), y.saturating_add(dy)]));
        let equal = near.flatten().copied().filter(|&index| {
            let ratio = self.norms[index] / stats.norm;
            (ratio - 1.0).abs() <= EQUAL
                && distance(&self.accepted[index].sketch, &stats.sketch) <= EQUAL
        });
        equal.collect()
    }

    /// The usual norms among accepted and new rows; computed anew when the rows grew by a tenth.
    fn usual_norms(&mut self, new: &[RowStats]) -> Option<NormRange> {
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

/// Checks the rows of one call (`states.len() x dim`, row-major) among themselves.
///
/// `tokens` are the states' token ids, by which equal rows are told from rightly equal ones.
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
    checker.check(&keys, rows)
}

/// The grid cell of a sketch. Each coordinate is a sum of four of its numbers, so rows that are
/// [`EQUAL`] differ by at most twice that in it, and lie in the same or a neighbouring cell.
fn cell(sketch: &[f32; WIDTH]) -> [i32; 2] {
    const SIDE: f32 = 4.0 * EQUAL;
    let sum = |half: &[f32]| half.iter().sum::<f32>() / SIDE;
    let (left, right) = sketch.split_at(WIDTH / 2);
    #[expect(clippy::cast_possible_truncation, reason = "a float to int cast saturates")]
    let floor = |value: f32| value.floor() as i32;
    [floor(sum(left)), floor(sum(right))]
}

fn distance(left: &[f32; WIDTH], right: &[f32; WIDTH]) -> f32 {
    left.iter().zip(right).map(|(l, r)| (l - r).powi(2)).sum::<f32>().sqrt()
}
