//! Many token sequences, end to end in one array.

use super::PlanError;

/// Token sequences, borrowed; sequence `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    ids: &'a [u32],
    offsets: &'a [i64],
}

impl<'a> Sequences<'a> {
    /// Views ids and offsets as sequences.
    ///
    /// # Errors
    /// [`PlanError::BadOffsets`] unless the offsets rise from 0 to the number of ids.
    pub fn new(ids: &'a [u32], offsets: &'a [i64]) -> Result<Self, PlanError> {
        let whole = offsets.first() == Some(&0)
            && offsets.is_sorted()
            && offsets.last().is_some_and(|end| usize::try_from(*end) == Ok(ids.len()));
        if whole {
            Ok(Self { ids, offsets })
        } else {
            Err(PlanError::BadOffsets { ids: ids.len() })
        }
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no sequence.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all sequences together.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// One sequence.
    ///
    /// # Panics
    /// If there is no sequence `i`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked in new")]
    pub fn get(&self, i: usize) -> &'a [u32] {
        &self.ids[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// How many tokens two sequences have in common from their start.
pub(super) fn common_prefix(left: &[u32], right: &[u32]) -> usize {
    left.iter().zip(right).take_while(|(l, r)| l == r).count()
}
