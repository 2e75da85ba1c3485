//! Rows of a writer, read back from where they are stored.

use super::CacheWriter;
use crate::format::error::{CacheError, CacheResult};
use crate::format::footer::StateKey;

impl CacheWriter {
    /// The text and row of an accepted state, read back from where they are stored.
    ///
    /// # Errors
    /// Whatever keeps a shard from being read.
    pub fn stored(&self, key: StateKey) -> CacheResult<Option<(String, Vec<f32>)>> {
        match self.current.get(&key) {
            Some(number) => Ok(self.read(&[*number])?.pop()),
            None => Ok(None),
        }
    }

    /// Numbers of the rows that count and that are not part of the former output, ascending.
    #[must_use]
    pub fn new_rows(&self) -> Vec<u64> {
        let mut rows: Vec<u64> =
            self.current.values().copied().filter(|number| *number >= self.former).collect();
        rows.sort_unstable();
        rows
    }

    /// Reads rows back by number, in the order of `numbers`, from where they are stored.
    ///
    /// # Errors
    /// Whatever keeps a shard from being read; [`CacheError::Argument`] for a number without a row.
    pub fn read(&self, numbers: &[u64]) -> CacheResult<Vec<(String, Vec<f32>)>> {
        if numbers.is_sorted_by(|left, right| left < right) {
            return self.read_sorted(numbers);
        }
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let found = self.read_sorted(&sorted)?;
        let place = |number: &u64| sorted.partition_point(|other| other < number);
        Ok(numbers.iter().map(|number| found[place(number)].clone()).collect())
    }

    /// The same for numbers that ascend and are distinct.
    fn read_sorted(&self, numbers: &[u64]) -> CacheResult<Vec<(String, Vec<f32>)>> {
        let pending_from = self.total - self.pending_states.len() as u64;
        let missing = |number: u64| CacheError::Argument(format!("there is no row {number}"));
        let mut found = Vec::with_capacity(numbers.len());
        for source in &self.sources {
            let end = source.first + source.file.num_rows() as u64;
            let inside = numbers.iter().filter(|number| (source.first..end).contains(*number));
            let inside: Vec<usize> =
                inside.filter_map(|number| usize::try_from(number - source.first).ok()).collect();
            if inside.is_empty() {
                continue;
            }
            let rows = source.file.read_rows(&inside)?;
            let states = rows.states.iter().flatten().map(str::to_owned);
            found.extend(states.zip(rows.values.chunks(self.dim).map(<[f32]>::to_vec)));
        }
        for &number in numbers.iter().filter(|number| **number >= pending_from) {
            let index = usize::try_from(number - pending_from).map_err(|_| missing(number))?;
            let state = self.pending_states.get(index).ok_or_else(|| missing(number))?;
            let row = &self.pending_values[index * self.dim..(index + 1) * self.dim];
            found.push((state.clone(), row.to_vec()));
        }
        Ok(found)
    }
}
