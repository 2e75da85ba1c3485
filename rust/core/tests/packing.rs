//! Plans hold every sequence once and keep their budgets.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use ebm_encode::packing::{PlanError, plan_padded};
use proptest::prelude::*;

#[test]
fn a_budget_of_nothing_is_refused() {
    assert_eq!(plan_padded(&[1], 0, 1), Err(PlanError::EmptyBudget("max_tokens")));
    assert_eq!(plan_padded(&[1], 1, 0), Err(PlanError::EmptyBudget("max_rows")));
}

#[test]
fn no_sequences_make_no_batches() {
    assert_eq!(plan_padded(&[], 10, 10), Ok(vec![]));
}

proptest! {
    #[test]
    fn plans_are_complete_within_budget_and_ordered(
        lengths in prop::collection::vec(0_u32..500, 0..300),
        max_tokens in 1_usize..2000,
        max_rows in 1_usize..40,
    ) {
        let plan = plan_padded(&lengths, max_tokens, max_rows).unwrap();
        let mut all: Vec<usize> = plan.iter().flatten().copied().collect();
        let in_order: Vec<u32> = all.iter().map(|&i| lengths[i]).collect();
        prop_assert!(in_order.is_sorted_by(|a, b| a >= b), "longest first");
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        for batch in &plan {
            let longest = batch.iter().map(|&i| lengths[i] as usize).max().unwrap();
            prop_assert!(batch.len() <= max_rows);
            prop_assert!(batch.len() * longest <= max_tokens || batch.len() == 1);
        }
        prop_assert_eq!(&plan, &plan_padded(&lengths, max_tokens, max_rows).unwrap());
    }
}
