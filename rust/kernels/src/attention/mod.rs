//! Attention of a packed batch's nodes over their paths, in float32 on a CPU.
//!
//! The nodes of a packed batch stand in depth-first order, so the path of a run of new nodes is
//! what is left of the path before it, then the run itself. For each head, keys and values are laid
//! in a buffer by their depth, each run over what is there, and the run's queries see the buffer's
//! start up to their own depth: nothing is gathered and no pair outside the paths is computed.
//! Heads and stretches of runs are divided among threads.
//!
//! A packed batch may come in chunks, one call each: then the first run of a chunk may stand on a
//! path that was computed before, of which the caller gives the keys and values.

mod path;
mod product;
mod softmax;

use std::num::NonZero;

use ndarray::{ArrayView3, ArrayViewMut3, Axis};

use path::{Lane, stretches};

use ebm_threads::Threads;

/// Why attention cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// The arrays do not fit each other.
    #[error("{0}")]
    Shape(String),
    /// The runs are no depth-first walk over the nodes.
    #[error("run {run}: {what}")]
    Run {
        /// Which run.
        run: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// No threads to work on.
    #[error("no threads for attention: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// The runs of a chunk: which new nodes stand on which path.
#[derive(Debug, Clone, Copy)]
pub struct Runs<'a> {
    /// First node of each run, and the number of nodes, `[R + 1]`; none is empty.
    pub starts: &'a [i64],
    /// Depth of each run's first node, `[R]`: so many nodes it has from the path before it.
    pub kept: &'a [i64],
}

/// The path on which the first run stands, as far as it was computed before; `P` may be 0.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// Keys by depth, `[G, P, D]`.
    pub key: ArrayView3<'a, f32>,
    /// Values by depth, `[G, P, E]`.
    pub value: ArrayView3<'a, f32>,
}

/// What one layer asks: `softmax(scale * Q K^T) V` along paths.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Queries, `[H, N, D]`.
    pub query: ArrayView3<'a, f32>,
    /// Keys, `[G, N, D]`; `G` divides `H`, and neighbouring query heads share one.
    pub key: ArrayView3<'a, f32>,
    /// Values, `[G, N, E]`.
    pub value: ArrayView3<'a, f32>,
    /// Keys and values that were computed before.
    pub before: Before<'a>,
    /// What scores are multiplied with.
    pub scale: f32,
    /// No query sees a key this many positions before it, or more; `None`: it sees its whole path.
    pub reach: Option<NonZero<usize>>,
}

/// Threads that compute attention.
#[derive(Debug)]
pub struct PathAttention {
    threads: Threads,
}

impl PathAttention {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`AttentionError::Threads`] if the system gives none.
    pub fn new(threads: NonZero<usize>) -> Result<Self, AttentionError> {
        Ok(Self { threads: Threads::new("attention", threads)? })
    }

    /// Writes the outputs of a layer, `[N, H, E]`; also in a process that was forked since the
    /// threads were started.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] and [`AttentionError::Run`] if the arguments do not fit each other,
    /// [`AttentionError::Threads`] if a forked process gets none; then nothing is written.
    pub fn attend(
        &self,
        layer: &Layer<'_>,
        runs: Runs<'_>,
        output: ArrayViewMut3<'_, f32>,
    ) -> Result<(), AttentionError> {
        let groups = require_shapes(layer, &output)?;
        let before = layer.before.key.len_of(Axis(1));
        let runs = path::checked(runs, before, layer.query.len_of(Axis(1)))?;
        let heads = layer.query.len_of(Axis(0));
        let parts = stretches(&runs, before, (4 * self.threads.count()).div_ceil(heads));
        let mut lanes = Vec::with_capacity(heads * parts.len());
        let mut output = output.permuted_axes([1, 0, 2]);
        for (head, mut rest) in output.axis_iter_mut(Axis(0)).enumerate() {
            for part in &parts {
                let (own, others) = rest.split_at(Axis(0), part.nodes.len());
                rest = others;
                lanes.push((head, part, own));
            }
        }
        self.threads.install(|| {
            rayon::scope(|scope| {
                for (head, part, own) in lanes {
                    let lane = Lane {
                        query: layer.query.index_axis_move(Axis(0), head),
                        key: layer.key.index_axis_move(Axis(0), head / groups),
                        value: layer.value.index_axis_move(Axis(0), head / groups),
                        key_before: layer.before.key.index_axis_move(Axis(0), head / groups),
                        value_before: layer.before.value.index_axis_move(Axis(0), head / groups),
                        scale: layer.scale,
                        reach: layer.reach.map_or(usize::MAX, NonZero::get),
                    };
                    scope.spawn(move |_| lane.attend(part, own));
                }
            });
        })?;
        Ok(())
    }
}

/// How many query heads share a key.
fn require_shapes(
    layer: &Layer<'_>,
    output: &ArrayViewMut3<'_, f32>,
) -> Result<usize, AttentionError> {
    let (heads, nodes, width) = layer.query.dim();
    let (groups, keys, key_width) = layer.key.dim();
    let (value_groups, values, value_width) = layer.value.dim();
    let before = layer.before.key.len_of(Axis(1));
    let fits = (keys, key_width, values, value_groups) == (nodes, width, nodes, groups)
        && layer.before.key.dim() == (groups, before, width)
        && layer.before.value.dim() == (groups, before, value_width)
        && output.dim() == (nodes, heads, value_width)
        && groups > 0
        && heads % groups == 0;
    if fits && heads == 0 {
        let message = "queries, keys and values have no heads: expected at least one of each";
        return Err(AttentionError::Shape(message.to_owned()));
    }
    if fits {
        return Ok(heads / groups);
    }
    Err(AttentionError::Shape(format!(
        "queries {:?}, keys {:?} after {:?}, values {:?} after {:?} and outputs {:?} do not fit each \
         other",
        layer.query.shape(),
        layer.key.shape(),
        layer.before.key.shape(),
        layer.value.shape(),
        layer.before.value.shape(),
        output.shape()
    )))
}
