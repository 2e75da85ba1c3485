//! Texts to row numbers: every text where the file's decoder put it, and a hash table of row numbers.

use std::hash::BuildHasher;
use std::path::Path;

use arrow_array::{Array, StringArray};
use hashbrown::{DefaultHashBuilder, HashTable};
use rayon::prelude::*;

use crate::format::error::{CacheError, CacheResult};
use crate::read::batch::{AT_ONCE, EXAMPLES};
use ebm_threads::spread;

/// The states of a cache in file order, and where each stands.
#[derive(Debug, Default)]
pub(crate) struct StateIndex {
    texts: Vec<StringArray>,
    /// Number of the first row of each array of texts.
    firsts: Vec<usize>,
    rows: HashTable<Entry>,
    count: usize,
    hasher: DefaultHashBuilder,
}

/// Where a state is, and its hash, which spares a look at most other texts.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    /// Number of the array of texts, and place in it; arrays are batches of about a thousand rows.
    place: (u32, u32),
}

impl StateIndex {
    /// An index of texts (without nulls) that are all in memory; of several rows with the same, lookups
    /// find the last.
    pub(crate) fn of(texts: Vec<StringArray>) -> Self {
        let mut index = Self::default();
        for array in &texts {
            index.firsts.push(index.count);
            index.count += array.len();
        }
        index.texts = texts;
        let hash = |array: &StringArray| -> Vec<u64> {
            array.iter().flatten().map(|state| index.hasher.hash_one(state)).collect()
        };
        let hashes: Vec<Vec<u64>> = spread(|| index.texts.par_iter().map(hash).collect());
        let mut rows = HashTable::with_capacity(index.count);
        for (array, hashes) in (0_u32..).zip(hashes) {
            for (place, hash) in (0_u32..).zip(hashes) {
                let entry = Entry { hash, place: (array, place) };
                let state = index.at(entry.place);
                let same = |other: &Entry| other.hash == hash && index.at(other.place) == state;
                match rows.find_mut(hash, same) {
                    Some(earlier) => *earlier = entry,
                    None => {
                        rows.insert_unique(hash, entry, |other| other.hash);
                    }
                }
            }
        }
        index.rows = rows;
        index
    }

    fn at(&self, (array, place): (u32, u32)) -> &str {
        self.texts[array as usize].value(place as usize)
    }

    pub(crate) fn get(&self, state: &str) -> Option<usize> {
        let hash = self.hasher.hash_one(state);
        let same = |entry: &Entry| entry.hash == hash && self.at(entry.place) == state;
        let (array, place) = self.rows.find(hash, same)?.place;
        Some(self.firsts[array as usize] + place as usize)
    }

    /// The rows of several states.
    ///
    /// # Errors
    /// [`CacheError::Unknown`], listing some that the cache at `path` does not have.
    pub(crate) fn positions<S: AsRef<str> + Sync>(
        &self,
        states: &[S],
        path: &Path,
    ) -> CacheResult<Vec<usize>> {
        let found: Vec<Option<usize>> = spread(|| {
            states.par_iter().with_min_len(AT_ONCE).map(|s| self.get(s.as_ref())).collect()
        });
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
    pub(crate) fn require_rows(&self, numbers: &[usize]) -> CacheResult<()> {
        match numbers.iter().find(|number| **number >= self.len()) {
            Some(number) => {
                let message = format!("row {number}: the cache has {} rows", self.len());
                Err(CacheError::Argument(message))
            }
            None => Ok(()),
        }
    }

    /// The state of a row.
    ///
    /// # Panics
    /// If there is no such row, like indexing a slice.
    pub(crate) fn text(&self, row: usize) -> &str {
        let array = self.firsts.partition_point(|first| *first <= row) - 1;
        self.texts[array].value(row - self.firsts[array])
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }
}
