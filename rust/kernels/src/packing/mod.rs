//! Token sequences to forward passes.
//!
//! A causal model's hidden state at a token depends only on the tokens up to it. Sequences that
//! begin alike therefore share the hidden states of what they have in common, and the unique tokens
//! after prefix sharing are the nodes of a trie. A *packed batch* is a set of sequences
//! whose trie goes through the model in one pass, its nodes in depth-first order ([`Trie`]).

mod padded;
mod sequences;
mod shared;
mod trie;

pub use padded::plan_padded;
pub use sequences::Sequences;
pub use shared::{Limits, Sharing, count_nodes, plan_windows};
pub use trie::Trie;

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A budget of nothing holds nothing.
    #[error("{0} must be at least 1")]
    EmptyBudget(&'static str),
    /// The offsets do not cut the ids into sequences.
    #[error("offsets must start at 0, not fall, and end at the number of ids, {ids}")]
    BadOffsets {
        /// Number of ids.
        ids: usize,
    },
    /// More tokens or sequences than a packed batch can number.
    #[error("{0} tokens are more than one window can hold")]
    TooLarge(usize),
}
