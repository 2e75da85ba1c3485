//! Texts to row numbers: every text stored once, end to end, and a hash table of row numbers.

use std::hash::BuildHasher;
use std::path::Path;

use hashbrown::{DefaultHashBuilder, HashTable};
use rayon::prelude::*;

use super::embedding_cache::{AT_ONCE, EXAMPLES};
use super::error::{CacheError, CacheResult};

/// The states of a cache in file order, and where each stands.
#[derive(Debug, Default)]
pub(super) struct StateIndex {
    texts: String,
    ends: Vec<usize>,
    rows: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl StateIndex {
    /// An index of texts that are all at hand, by row group.
    pub(super) fn of(groups: &[Vec<String>]) -> Self {
        let rows = groups.iter().map(Vec::len).sum();
        let mut index = Self {
            texts: String::with_capacity(groups.iter().flatten().map(String::len).sum()),
            ends: Vec::with_capacity(rows),
            rows: HashTable::with_capacity(rows),
            hasher: DefaultHashBuilder::default(),
        };
        for text in groups.iter().flatten() {
            index.push(text);
        }
        index
    }

    /// Adds the next row's state; of several rows with this text, lookups find the last.
    fn push(&mut self, state: &str) {
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

    /// The rows of several states.
    ///
    /// # Errors
    /// [`CacheError::Unknown`], naming some that the cache at `path` does not have.
    pub(super) fn positions<S: AsRef<str> + Sync>(
        &self,
        states: &[S],
        path: &Path,
    ) -> CacheResult<Vec<usize>> {
        let found: Vec<Option<usize>> =
            states.par_iter().with_min_len(AT_ONCE).map(|s| self.get(s.as_ref())).collect();
        let missing: Vec<&str> = (states.iter().zip(&found))
            .filter(|(_, place)| place.is_none())
            .map(|(state, _)| state.as_ref())
            .collect();
        if missing.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        let preview = |state: &&str| format!("{:?}", state.chars().take(60).collect::<String>());
        Err(CacheError::Unknown {
            path: path.to_owned(),
            count: missing.len(),
            examples: missing.iter().take(EXAMPLES).map(preview).collect(),
        })
    }

    /// Refuses numbers of rows that there are not.
    pub(super) fn require_rows(&self, numbers: &[usize]) -> CacheResult<()> {
        match numbers.iter().find(|number| **number >= self.len()) {
            Some(number) => {
                let message = format!("row {number}: the cache has {} rows", self.len());
                Err(CacheError::Argument(message))
            }
            None => Ok(()),
        }
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
