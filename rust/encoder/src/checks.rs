//! The row checks of a search: every embedding passes them before anyone gets it.
//!
//! New embeddings are compared with those of the cache in front, with those of the output that is
//! appended to, and with those that were encoded before, by the same [`RowChecker`] that the writer
//! and the readers of caches use.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use crate::embedding::{Answer, Embedding, TokenDigest};
use crate::memory::Memory;
use ebm_cache::{BadRow, Cache, RowChecker, StateKey};
use ebm_threads::spread;

/// Embeddings of the search that are remembered, at about 200 bytes each. Beyond that, only those
/// that are still in memory are compared with.
const REMEMBERED: usize = 1 << 20;
/// Embeddings that are checked at a time when a checker is filled.
const CHUNK: usize = 1 << 14;

/// An embedding that failed the checks.
#[derive(Debug)]
pub(crate) struct Bad {
    /// Its place among the states of the batch.
    pub(crate) place: usize,
    pub(crate) reason: BadRow,
}

/// What the embeddings of a search are checked against.
pub(crate) struct SearchChecks {
    dim: usize,
    /// The cache in front, if the same encoder made it.
    front: Option<Cache>,
    /// Embeddings of the output that is appended to, and then those of the cache in front.
    base: RowChecker,
    base_rows: usize,
    /// The same and embeddings of the search; filled before the first check.
    checker: Option<RowChecker>,
    /// The first state with each token digest. Other states with it may have the same embedding.
    first_with: HashMap<TokenDigest, StateKey>,
    remembered: usize,
    limit: usize,
}

impl fmt::Debug for SearchChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SearchChecks({} rows)", self.base_rows + self.remembered)
    }
}

impl SearchChecks {
    /// Checks only against the embeddings of the search.
    pub(crate) fn new(dim: usize) -> Self {
        Self::beside(dim, None, None)
    }

    /// Checks also against the cache in front and the output that is appended to.
    pub(crate) fn beside(dim: usize, front: Option<Cache>, appended: Option<RowChecker>) -> Self {
        let base = appended.unwrap_or_else(|| RowChecker::new(dim));
        let base_rows = base.norms().len();
        Self {
            dim,
            front,
            base,
            base_rows,
            checker: None,
            first_with: HashMap::new(),
            remembered: 0,
            limit: REMEMBERED,
        }
    }

    #[cfg(test)]
    pub(crate) fn remembering(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Checks the embeddings of a batch; returns those that are bad. Good ones are remembered.
    pub(crate) fn check(&mut self, states: &[Arc<str>], answers: &[Answer]) -> Vec<Bad> {
        let found: Vec<(usize, &Embedding)> = answers
            .iter()
            .enumerate()
            .filter_map(|(place, answer)| Some((place, answer.as_ref().ok()?)))
            .collect();
        let keys: Vec<StateKey> = found.iter().map(|(i, _)| StateKey::of(&states[*i])).collect();
        for (key, (_, embedding)) in keys.iter().zip(&found) {
            self.note_digest(*key, embedding.prompt().digest);
        }
        let rows: Vec<f32> =
            found.iter().flat_map(|(_, embedding)| embedding.iter()).copied().collect();
        let verdicts = self.checker().check(&keys, &rows);
        let verdicts = found.iter().map(|(place, _)| *place).zip(verdicts);
        let bad: Vec<Bad> = verdicts
            .filter_map(|(place, verdict)| Some(Bad { place, reason: verdict.err()? }))
            .collect();
        self.remembered += keys.len() - bad.len();
        bad
    }

    /// Checks one embedding.
    pub(crate) fn check_one(&mut self, state: &Arc<str>, answer: &Answer) -> Result<(), BadRow> {
        let bad = self.check(std::slice::from_ref(state), std::slice::from_ref(answer)).pop();
        bad.map_or(Ok(()), |bad| Err(bad.reason))
    }

    /// Forgets the embedding of a state, which proved doubtful; embeddings of the cache in front
    /// stay.
    pub(crate) fn retract(&mut self, key: StateKey) {
        self.checker().retract(key);
        self.base.retract(key);
    }

    /// Whether an embedding of a state stands in the output that is appended to, or in the cache in
    /// front.
    pub(crate) fn is_stored(&self, key: StateKey) -> bool {
        self.base.has(key)
    }

    /// The text of a state that has an embedding in the cache in front.
    pub(crate) fn text_in_front(&self, key: StateKey) -> Option<Arc<str>> {
        let front = self.front.as_ref()?;
        let place = spread(|| {
            (0..front.len()).into_par_iter().find_any(|&row| StateKey::of(front.state(row)) == key)
        })?;
        Some(Arc::from(front.state(place)))
    }

    /// Keeps the checker's memory within its limit, by forgetting embeddings that nobody can be
    /// served.
    pub(crate) fn trim(&mut self, memory: Option<&Memory>) {
        if self.remembered <= self.limit {
            return;
        }
        self.checker = Some(self.base.clone());
        self.first_with.clear();
        self.remembered = 0;
        let rows: Vec<(Arc<str>, Answer)> = memory
            .into_iter()
            .flat_map(Memory::rows)
            .map(|(state, embedding)| (state, Ok(embedding)))
            .collect();
        for chunk in rows.chunks(CHUNK) {
            let (states, answers): (Vec<_>, Vec<_>) = chunk.iter().cloned().unzip();
            self.check(&states, &answers);
        }
        self.limit = REMEMBERED.min(self.limit).max(2 * self.remembered);
        tracing::debug!(rows = self.remembered, "row checks: older rows are forgotten");
    }

    /// Notes the tokens of a state: states with the same tokens may have the same embedding.
    pub(crate) fn note_digest(&mut self, key: StateKey, digest: Option<TokenDigest>) {
        let Some(digest) = digest else { return };
        let first = *self.first_with.entry(digest).or_insert(key);
        if first != key {
            self.checker().allow_equal(first, key);
        }
    }

    fn checker(&mut self) -> &mut RowChecker {
        if self.checker.is_none() {
            self.add_front();
        }
        self.checker.get_or_insert_with(|| self.base.clone())
    }

    /// Embeddings of the cache in front. Those that fail (of a cache opened leniently, or rightly
    /// equal to another of it) are compared with nothing; what they equal is.
    fn add_front(&mut self) {
        let Some(front) = self.front.take() else { return };
        let (base, rows) = (&mut self.base, &mut self.base_rows);
        let mut add = |keys: &[StateKey], values: &[f32]| {
            let verdicts = base.check(keys, values);
            *rows += verdicts.iter().filter(|verdict| verdict.is_ok()).count();
        };
        match &front {
            Cache::InMemory(cache) => {
                let numbers: Vec<usize> = (0..cache.len()).collect();
                for chunk in numbers.chunks(CHUNK) {
                    let keys: Vec<StateKey> = spread(|| {
                        chunk.par_iter().map(|row| StateKey::of(cache.state(*row))).collect()
                    });
                    let rows = chunk[0] * self.dim..(chunk[0] + chunk.len()) * self.dim;
                    add(&keys, &cache.matrix()[rows]);
                }
            }
            Cache::Mapped(cache) => {
                let added = cache.for_each_rows(|_, keys, values| {
                    add(keys, values);
                    Ok(())
                });
                if let Err(error) = added {
                    // It could be read when the encoder was made: its file was changed since.
                    tracing::error!(%error, "new embeddings are not compared with all stored ones");
                }
            }
        }
        self.front = Some(front);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::{PromptInfo, Row};

    #[expect(clippy::unnecessary_wraps, reason = "as an encoder answers")]
    fn answer(row: &[f32], digest: u64) -> Answer {
        let prompt = PromptInfo::new(1).with_digest(Some(TokenDigest::new(digest)));
        Ok(Embedding::new(Row::new(&Arc::from(row), 0, row.len()), prompt))
    }

    fn row(number: u16) -> [f32; 2] {
        let angle = f32::from(number) / 1000.0;
        [angle.cos(), angle.sin()]
    }

    #[test]
    fn a_long_search_remembers_as_many_rows_as_it_may_and_those_in_memory() {
        let memory = Memory::new(1 << 20);
        let mut checks = SearchChecks::new(2).remembering(100);
        let state = |number: u16| Arc::<str>::from(format!("state {number}"));
        for number in 0..1000 {
            let answer = answer(&row(number), number.into());
            checks.check_one(&state(number), &answer).unwrap();
            if number < 10 {
                memory.insert(&state(number), answer.as_ref().unwrap());
            }
            checks.trim(Some(&memory));
            assert!(checks.remembered <= 101, "{}", checks.remembered);
        }
        for number in 0..10 {
            let copied = checks.check_one(&Arc::from("another"), &answer(&row(number), 5000));
            assert!(matches!(copied, Err(BadRow::Duplicate { .. })), "{number}: {copied:?}");
        }
    }

    #[test]
    fn equal_tokens_may_have_equal_rows() {
        let mut checks = SearchChecks::new(2);
        let states = ["a", "b", "c"].map(Arc::from);
        let answers = [answer(&row(1), 7), answer(&row(1), 7), answer(&row(1), 8)];
        let bad = checks.check(&states, &answers);
        assert_eq!(bad.iter().map(|bad| bad.place).collect::<Vec<_>>(), [2], "{bad:?}");
    }
}
