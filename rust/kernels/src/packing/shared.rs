//! Windows: neighbours in the order of their tokens together, under a budget of trie nodes.

use rayon::slice::ParallelSliceMut;

use super::PlanError;
use super::sequences::{Sequences, common_prefix};
use ebm_threads::spread;

/// Whether sequences of a packed batch share what they have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// A prefix that neighbours have in common counts once.
    Prefixes,
    /// Every sequence counts whole.
    Nothing,
}

/// The most that a packed batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most trie nodes.
    pub nodes: usize,
    /// Most sequences.
    pub rows: usize,
    /// Most tokens on the paths of all sequences that have a node of their own, shared prefixes
    /// counted for each: what an engine gathers that lays out every path.
    pub path_tokens: usize,
}

/// Groups sequences into packed batches within limits.
///
/// Sequences stand in the order of their token ids, equal ones in the order given, so that the ones
/// that share most are neighbours. A sequence longer than a limit is a packed batch by itself.
/// Returns the batches as indices into `sequences`; the same sequences always give the same plan.
/// Linear in the tokens, but for the sort, which compares no further than two sequences agree.
///
/// # Errors
/// [`PlanError::EmptyBudget`] if a limit is 0.
pub fn plan_windows(
    sequences: Sequences<'_>,
    sharing: Sharing,
    limits: Limits,
) -> Result<Vec<Vec<usize>>, PlanError> {
    let named = [
        ("max_nodes", limits.nodes),
        ("max_rows", limits.rows),
        ("max_path_tokens", limits.path_tokens),
    ];
    if let Some(&(name, _)) = named.iter().find(|(_, limit)| *limit == 0) {
        return Err(PlanError::EmptyBudget(name));
    }
    let mut windows: Vec<Vec<usize>> = Vec::new();
    let (mut nodes, mut path_tokens) = (0, 0);
    for i in sorted(sequences) {
        let sequence = sequences.get(i);
        if let Some(window) = windows.last_mut()
            && let Some(&before) = window.last()
        {
            let shared = match sharing {
                Sharing::Prefixes => common_prefix(sequences.get(before), sequence),
                Sharing::Nothing => 0,
            };
            let new = sequence.len() - shared;
            let path = if new == 0 { 0 } else { sequence.len() };
            if nodes + new <= limits.nodes
                && path_tokens + path <= limits.path_tokens
                && window.len() < limits.rows
            {
                nodes += new;
                path_tokens += path;
                window.push(i);
                continue;
            }
        }
        nodes = sequence.len();
        path_tokens = sequence.len();
        windows.push(vec![i]);
    }
    Ok(windows)
}

/// Number of distinct non-empty prefixes: the nodes of the trie of all sequences.
#[must_use]
pub fn count_nodes(sequences: Sequences<'_>) -> usize {
    let order = sorted(sequences);
    let mut before: &[u32] = &[];
    let mut nodes = 0;
    for i in order {
        let sequence = sequences.get(i);
        nodes += sequence.len() - common_prefix(before, sequence);
        before = sequence;
    }
    nodes
}

fn sorted(sequences: Sequences<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    spread(|| {
        order.par_sort_unstable_by(|&a, &b| sequences.get(a).cmp(sequences.get(b)).then(a.cmp(&b)));
    });
    order
}
