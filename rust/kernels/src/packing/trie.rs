//! The nodes of one packed batch, in depth-first order.

use super::PlanError;
use super::sequences::{Sequences, common_prefix};
use super::shared::Sharing;

/// The trie of some sequences, its nodes in depth-first order.
///
/// Node `j` is an ancestor of node `i`, or `i` itself, exactly if `j <= i < ends[j]`. The path of
/// sequence `s` is its first `kept[s]` tokens, which its predecessor computed, followed by the
/// nodes `starts[s] .. starts[s + 1]`. Sequences are taken in the order given: in any order each has
/// its path, in the order of their token ids no prefix has two nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    /// Token of each node, `[N]`.
    pub ids: Vec<i64>,
    /// Position of each node in its sequences, from 0, `[N]`.
    pub depths: Vec<i64>,
    /// One past the last descendant of each node, `[N]`.
    pub ends: Vec<i64>,
    /// Parent of each node, -1 for a first token, `[N]`.
    pub parents: Vec<i64>,
    /// First own node of each sequence, and the number of nodes, `[S + 1]`.
    pub starts: Vec<i64>,
    /// How many tokens each sequence has from its predecessor, `[S]`.
    pub kept: Vec<i64>,
    /// Last node of each sequence, -1 for an empty one, `[S]`.
    pub leaves: Vec<i64>,
}

impl Trie {
    /// Lays sequences out as a trie; without sharing, as one path beside the other.
    ///
    /// # Errors
    /// [`PlanError::TooLarge`] if there are more tokens than an `i64` numbers.
    pub fn new(sequences: Sequences<'_>, sharing: Sharing) -> Result<Self, PlanError> {
        let tokens = sequences.tokens();
        i64::try_from(tokens).map_err(|_| PlanError::TooLarge(tokens))?;
        let mut trie = Self {
            ids: Vec::new(),
            depths: Vec::new(),
            ends: Vec::new(),
            parents: Vec::new(),
            starts: Vec::with_capacity(sequences.len() + 1),
            kept: Vec::with_capacity(sequences.len()),
            leaves: Vec::with_capacity(sequences.len()),
        };
        let mut before: &[u32] = &[];
        let mut path: Vec<i64> = Vec::new(); // the nodes of `before`
        for s in 0..sequences.len() {
            let sequence = sequences.get(s);
            let kept = match sharing {
                Sharing::Prefixes => common_prefix(before, sequence),
                Sharing::Nothing => 0,
            };
            trie.close(&mut path, kept);
            trie.starts.push(trie.next());
            trie.kept.push(signed(kept));
            for (depth, token) in sequence.iter().enumerate().skip(kept) {
                let node = trie.next();
                trie.ids.push(i64::from(*token));
                trie.depths.push(signed(depth));
                trie.parents.push(path.last().copied().unwrap_or(-1));
                trie.ends.push(node); // set when its last descendant is known
                path.push(node);
            }
            trie.leaves.push(path.last().copied().unwrap_or(-1));
            before = sequence;
        }
        trie.close(&mut path, 0);
        trie.starts.push(trie.next());
        Ok(trie)
    }

    /// The path shrinks to `depth` nodes: the others have all their descendants.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "nodes are indices"
    )]
    fn close(&mut self, path: &mut Vec<i64>, depth: usize) {
        let end = self.next();
        for node in path.drain(depth..) {
            self.ends[node as usize] = end;
        }
    }

    fn next(&self) -> i64 {
        signed(self.ids.len())
    }
}

/// Lengths within a slice that [`Trie::new`] has measured.
#[expect(clippy::cast_possible_wrap, reason = "at most the number of tokens, which fits")]
const fn signed(length: usize) -> i64 {
    length as i64
}
