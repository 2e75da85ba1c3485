//! Which states are known to have the same tokens, and so rightly equal rows.

use std::collections::HashMap;

use crate::format::footer::{Footer, StateKey};

/// Classes of states with the same tokens, gathered from footers and from a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct SameTokens {
    representative: HashMap<StateKey, StateKey>,
    /// The pairs that made two classes one, in the order in which they came.
    pairs: Vec<(StateKey, StateKey)>,
}

impl SameTokens {
    pub(crate) fn add_footer(&mut self, footer: &Footer) -> Result<(), String> {
        for (left, right) in &footer.same_tokens {
            let (Some(left), Some(right)) = (StateKey::from_hex(left), StateKey::from_hex(right))
            else {
                return Err("footer field same_tokens holds something else than keys".to_owned());
            };
            self.add(left, right);
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, left: StateKey, right: StateKey) {
        let (left, right) = (self.representative(left), self.representative(right));
        // Keys are digests, so their order is random, and chains stay as short as a logarithm.
        if left != right {
            self.representative.insert(left.max(right), left.min(right));
            self.pairs.push((left.max(right), left.min(right)));
        }
    }

    pub(crate) fn same(&self, left: StateKey, right: StateKey) -> bool {
        self.representative(left) == self.representative(right)
    }

    /// Number of pairs so far; later ones can be asked for by it.
    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(crate) fn key_pairs(&self) -> impl Iterator<Item = (StateKey, StateKey)> {
        self.pairs.iter().copied()
    }

    /// The pairs that a file needs so that its rows, and those of files that know of the first `known`
    /// pairs, are told from copies: what connects these states, and what came since.
    pub(crate) fn of_rows(
        &self,
        states: impl Iterator<Item = StateKey>,
        known: usize,
    ) -> Vec<(String, String)> {
        let own = states.map(|state| (state, self.representative(state)));
        let own = own.filter(|(state, representative)| state != representative);
        let since = self.pairs.get(known..).unwrap_or_default().iter().copied();
        let mut pairs: Vec<_> =
            own.chain(since).map(|(left, right)| (left.to_hex(), right.to_hex())).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    fn representative(&self, mut key: StateKey) -> StateKey {
        while let Some(next) = self.representative.get(&key) {
            key = *next;
        }
        key
    }
}
