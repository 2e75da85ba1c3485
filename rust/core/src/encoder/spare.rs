//! Memory of earlier batches, to be written again: fresh memory costs a page fault per 4 KiB.

use std::collections::VecDeque;
use std::sync::Arc;

use super::row::BatchMemory;

/// How many batches' memory is kept.
const KEPT: usize = 2;

/// Memory of the last batches. It is taken only when no row of it is left anywhere.
#[derive(Debug, Default)]
pub(super) struct Spare {
    batches: VecDeque<BatchMemory>,
}

impl Spare {
    /// Memory that nobody else has, of at least so many values; what is in it has no meaning.
    pub(super) fn take(&mut self, values: usize) -> BatchMemory {
        let fits = |memory: &mut BatchMemory| {
            // Not a large batch's for a small one: its rows would keep all of it.
            (values..=values.saturating_mul(2)).contains(&memory.len())
                && Arc::get_mut(memory).is_some()
        };
        let place = self.batches.iter_mut().position(fits);
        place
            .and_then(|place| self.batches.remove(place))
            .unwrap_or_else(|| std::iter::repeat_n(f32::NAN, values).collect())
    }

    /// Keeps a batch's memory for later.
    pub(super) fn keep(&mut self, memory: BatchMemory) {
        if self.batches.len() == KEPT {
            self.batches.pop_front();
        }
        self.batches.push_back(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_has_a_row_of_it() {
        let mut spare = Spare::default();
        let first = spare.take(100);
        let address = first.as_ptr();
        let row = Arc::clone(&first);
        spare.keep(first);
        assert_ne!(spare.take(100).as_ptr(), address, "a row of it is still in use");
        drop(row);
        assert_eq!(spare.take(90).as_ptr(), address);
        assert!(spare.batches.is_empty());
    }

    #[test]
    fn a_small_batch_does_not_take_a_large_ones() {
        let mut spare = Spare::default();
        let large = spare.take(1000);
        spare.keep(large);
        assert_eq!(spare.take(100).len(), 100);
        assert_eq!(spare.take(600).len(), 1000);
    }

    #[test]
    fn no_more_than_two_are_kept() {
        let mut spare = Spare::default();
        let batches = [10, 20, 30].map(|values| spare.take(values));
        for batch in batches {
            spare.keep(batch);
        }
        assert_eq!(spare.batches.iter().map(|batch| batch.len()).collect::<Vec<_>>(), [20, 30]);
    }
}
