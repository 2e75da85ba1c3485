//! A byte-bounded LRU of embeddings that were encoded during this search.

use std::sync::Arc;

use moka::sync::Cache;

use crate::embedding::Embedding;
use ebm_cache::StateKey;

/// About what an entry takes beside its text and values: two allocations and the cache's own books.
const OVERHEAD: usize = 128;

/// Embeddings by state; the least used ones go when it is full.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    rows: Cache<Arc<str>, Embedding>,
}

impl Memory {
    pub(crate) fn new(max_bytes: u64) -> Self {
        let weigh = |state: &Arc<str>, embedding: &Embedding| {
            let bytes = state.len() + size_of_val(&**embedding) + OVERHEAD;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self { rows: Cache::builder().max_capacity(max_bytes).weigher(weigh).build() }
    }

    pub(crate) fn get(&self, state: &str) -> Option<Embedding> {
        self.rows.get(state)
    }

    /// Keeps a copy of an embedding: by reference it would keep its whole batch, and no limit would hold.
    pub(crate) fn insert(&self, state: &Arc<str>, embedding: &Embedding) {
        self.rows.insert(Arc::clone(state), embedding.owned());
    }

    pub(crate) fn remove(&self, state: &str) {
        self.rows.invalidate(state);
    }

    /// The text of a state that is kept, by its key. Looks at all of them: for rare events.
    pub(crate) fn text_of(&self, key: StateKey) -> Option<Arc<str>> {
        let found = self.rows.iter().find(|(state, _)| StateKey::of(state) == key);
        found.map(|(state, _)| Arc::clone(&*state))
    }

    /// All embeddings that are kept.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Arc<str>, Embedding)> + '_ {
        self.rows.iter().map(|(state, embedding)| (Arc::clone(&*state), embedding))
    }
}
