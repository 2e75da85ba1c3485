//! One head over one stretch of runs.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::product::product;
use super::softmax::{LANES, softmax};
use super::{AttentionError, Runs};

/// New nodes, the first at depth `kept` of their path.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) nodes: Range<usize>,
    pub(super) kept: usize,
}

impl Run {
    fn depths(&self) -> Range<usize> {
        self.kept..self.kept + self.nodes.len()
    }
}

/// Where the key and value of a node on a path are.
#[derive(Debug, Clone, Copy)]
enum Ancestor {
    /// Among those computed before, at this depth.
    Before(usize),
    /// Among the nodes.
    Node(usize),
}

/// Some neighbouring runs, and what the first of them stands on.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) nodes: Range<usize>,
    runs: Vec<Run>,
    /// What stands at each depth of the path before the first run.
    path: Vec<Ancestor>,
    /// Length of the longest path.
    longest: usize,
}

/// The runs as indices; `before` is the length of the path that was computed before.
pub(super) fn checked(
    runs: Runs<'_>,
    before: usize,
    nodes: usize,
) -> Result<Vec<Run>, AttentionError> {
    let wrong = |run, what| AttentionError::Run { run, what };
    let index = |value: i64| usize::try_from(value).ok();
    if runs.starts.len() != runs.kept.len() + 1 {
        return Err(wrong(runs.kept.len(), "there must be one start more than depths"));
    }
    let mut checked = Vec::with_capacity(runs.kept.len());
    let (mut at, mut deepest) = (0, before);
    for (run, (ends, kept)) in runs.starts.windows(2).zip(runs.kept).enumerate() {
        let (Some(start), Some(stop), Some(kept)) = (index(ends[0]), index(ends[1]), index(*kept))
        else {
            return Err(wrong(run, "negative"));
        };
        if start != at || stop <= start {
            return Err(wrong(run, "runs must follow each other, none empty"));
        }
        if kept > deepest {
            return Err(wrong(run, "keeps more than the path before it has"));
        }
        (at, deepest) = (stop, kept + (stop - start));
        checked.push(Run { nodes: start..stop, kept });
    }
    if at == nodes { Ok(checked) } else { Err(wrong(checked.len(), "nodes without a run")) }
}

/// Divides runs into at most `parts` stretches of about as many pairs of a query and a key each.
pub(super) fn stretches(runs: &[Run], before: usize, parts: usize) -> Vec<Stretch> {
    let cost = |run: &Run| run.nodes.len() * run.depths().end;
    let each = runs.iter().map(cost).sum::<usize>().div_ceil(parts.max(1));
    let mut made: Vec<Stretch> = Vec::new();
    let mut path: Vec<Ancestor> = (0..before).map(Ancestor::Before).collect();
    let mut spent = 0;
    for run in runs {
        path.truncate(run.kept);
        match made.last_mut() {
            Some(last) if spent < each => {
                last.nodes.end = run.nodes.end;
                last.runs.push(run.clone());
                last.longest = last.longest.max(run.depths().end);
            }
            _ => {
                spent = 0;
                made.push(Stretch {
                    nodes: run.nodes.clone(),
                    runs: vec![run.clone()],
                    path: path.clone(),
                    longest: run.depths().end,
                });
            }
        }
        spent += cost(run);
        path.extend(run.nodes.clone().map(Ancestor::Node));
    }
    made
}

/// What one head needs.
pub(super) struct Lane<'a> {
    /// `[N, D]`.
    pub(super) query: ArrayView2<'a, f32>,
    /// `[N, D]`.
    pub(super) key: ArrayView2<'a, f32>,
    /// `[N, E]`.
    pub(super) value: ArrayView2<'a, f32>,
    /// `[P, D]`.
    pub(super) key_before: ArrayView2<'a, f32>,
    /// `[P, E]`.
    pub(super) value_before: ArrayView2<'a, f32>,
    pub(super) scale: f32,
    pub(super) reach: usize,
}

impl Lane<'_> {
    /// Writes the outputs of a stretch's nodes, `[n, E]`.
    pub(super) fn attend(&self, stretch: &Stretch, mut output: ArrayViewMut2<'_, f32>) {
        // Keys stand in columns, the order in which the products read them.
        // Rows an odd number of cache lines apart: at a power of two all would share a few places of
        // the cache.
        let stride = stretch.longest.next_multiple_of(LANES) | LANES;
        let mut keys = Array2::zeros((self.key.ncols(), stride));
        let mut values = Array2::zeros((stretch.longest, self.value.ncols()));
        for (depth, ancestor) in stretch.path.iter().enumerate() {
            let (key, value) = match *ancestor {
                Ancestor::Before(at) => (self.key_before.row(at), self.value_before.row(at)),
                Ancestor::Node(at) => (self.key.row(at), self.value.row(at)),
            };
            keys.column_mut(depth).assign(&key);
            values.row_mut(depth).assign(&value);
        }
        let most = stretch.runs.iter().map(|run| run.nodes.len()).max().unwrap_or(0);
        let mut room = vec![0.0; most * stretch.longest.next_multiple_of(LANES)];
        for run in &stretch.runs {
            let (nodes, depths) = (run.nodes.clone(), run.depths());
            let new = s![nodes.clone(), ..];
            keys.slice_mut(s![.., depths.clone()]).assign(&self.key.slice(new).t());
            values.slice_mut(s![depths.clone(), ..]).assign(&self.value.slice(new));
            let first = (run.kept + 1).saturating_sub(self.reach);
            let count = depths.end - first;
            let padded = count.next_multiple_of(LANES);
            let mut scores =
                ArrayViewMut2::from_shape((nodes.len(), padded), &mut room[..nodes.len() * padded])
                    .expect("as many as rows times columns");
            let seen = keys.slice(s![.., first..depths.end]);
            product(&self.query.slice(new), &seen, self.scale, scores.slice_mut(s![.., ..count]));
            for (depth, mut row) in depths.clone().zip(scores.rows_mut()) {
                let from = (depth + 1).saturating_sub(self.reach).max(first) - first;
                row.slice_mut(s![..from]).fill(f32::NEG_INFINITY);
                row.slice_mut(s![depth + 1 - first..]).fill(f32::NEG_INFINITY);
                softmax(row.as_slice_mut().expect("rows are in C order"));
            }
            let own = nodes.start - stretch.nodes.start..nodes.end - stretch.nodes.start;
            let seen = values.slice(s![first..depths.end, ..]);
            product(&scores.slice(s![.., ..count]), &seen, 1.0, output.slice_mut(s![own, ..]));
        }
    }
}
