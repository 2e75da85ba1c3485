//! Padded batches: sequences of like length together, under a budget of tokens and rows.

use super::PlanError;

/// Groups sequences into batches, longest first.
///
/// A batch holds at most `max_rows` sequences, and padded to its longest at most `max_tokens`
/// tokens; a sequence longer than that is a batch by itself. Returns the batches as indices into
/// `lengths`. The same lengths always give the same plan.
///
/// # Errors
/// [`PlanError::EmptyBudget`] if a budget is 0.
pub fn plan_padded(
    lengths: &[u32],
    max_tokens: usize,
    max_rows: usize,
) -> Result<Vec<Vec<usize>>, PlanError> {
    if max_tokens == 0 {
        return Err(PlanError::EmptyBudget("max_tokens"));
    }
    if max_rows == 0 {
        return Err(PlanError::EmptyBudget("max_rows"));
    }
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    // Stable, so that equal lengths keep their order. Longest first: what does not fit shows early.
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for i in order {
        match batches.last_mut() {
            Some(batch) if batch.len() < room => batch.push(i),
            _ => {
                let longest = lengths[i].max(1) as usize;
                room = (max_tokens / longest).clamp(1, max_rows);
                batches.push(vec![i]);
            }
        }
    }
    Ok(batches)
}
