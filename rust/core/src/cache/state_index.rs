//! Texts to row numbers: every text stored once, end to end, and a hash table of row numbers.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

/// The states of a cache in file order, and where each stands.
#[derive(Debug, Default)]
pub(super) struct StateIndex {
    texts: String,
    ends: Vec<usize>,
    rows: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl StateIndex {
    pub(super) fn with_capacity(rows: usize) -> Self {
        Self { rows: HashTable::with_capacity(rows), ..Self::default() }
    }

    /// Adds the next row's state; of several rows with this text, lookups find the last.
    pub(super) fn push(&mut self, state: &str) {
        let row = self.len();
        self.texts.push_str(state);
        self.ends.push(self.texts.len());
        let Self { texts, ends, rows, hasher } = self;
        let hash = hasher.hash_one(state);
        if let Some(earlier) = rows.find_mut(hash, |&other| text(texts, ends, other) == state) {
            *earlier = row;
            return;
        }
        rows.insert_unique(hash, row, |&other| hasher.hash_one(text(texts, ends, other)));
    }

    pub(super) fn get(&self, state: &str) -> Option<usize> {
        let hash = self.hasher.hash_one(state);
        self.rows.find(hash, |&row| self.text(row) == state).copied()
    }

    pub(super) fn text(&self, row: usize) -> &str {
        text(&self.texts, &self.ends, row)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

fn text<'a>(texts: &'a str, ends: &[usize], row: usize) -> &'a str {
    let start = if row == 0 { 0 } else { ends[row - 1] };
    &texts[start..ends[row]]
}
