//! The faults of real servers must be caught, and nothing else.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use common::{row, rows, states};
use ebm_encode::cache::{BadRow, RowChecker, StateKey, check_rows};
use proptest::prelude::*;

const DIM: usize = 96;

fn keys(count: u64) -> Vec<StateKey> {
    states(0..count).iter().map(|state| StateKey::of(state)).collect()
}

fn kinds(verdicts: &[Result<(), BadRow>]) -> Vec<&'static str> {
    verdicts.iter().map(|v| v.as_ref().err().map_or("ok", BadRow::kind)).collect()
}

#[test]
fn a_zero_tail_is_bad() {
    let mut batch = rows(0..32, DIM);
    batch[DIM..].fill(0.0);
    let verdicts = RowChecker::new(DIM).check(&keys(32), &batch);
    assert_eq!(verdicts[0], Ok(()));
    assert!(verdicts[1..].iter().all(|v| matches!(v, Err(BadRow::ZeroNorm { .. }))));
}

#[test]
fn one_vector_copied_over_a_batch_is_bad() {
    let batch = row(7, DIM).repeat(32);
    let verdicts = RowChecker::new(DIM).check(&keys(32), &batch);
    assert_eq!(verdicts[0], Ok(()));
    assert!(verdicts[1..].iter().all(|v| matches!(v, Err(BadRow::Duplicate { row: 0, .. }))));
}

#[test]
fn a_copy_of_a_row_of_an_earlier_batch_is_bad() {
    let mut checker = RowChecker::new(DIM);
    let keys = keys(64);
    checker.check(&keys[..32], &rows(0..32, DIM));
    let mut second = rows(32..64, DIM);
    second[5 * DIM..6 * DIM].copy_from_slice(&row(3, DIM));
    let verdicts = checker.check(&keys[32..], &second);
    let expected = BadRow::Duplicate { of: keys[3], row: 3 };
    assert_eq!(verdicts[5], Err(expected));
    assert_eq!(verdicts.iter().filter(|v| v.is_err()).count(), 1);
}

#[test]
fn equal_rows_of_equal_tokens_are_good() {
    let states = ["a", "b", "c"];
    let batch = row(1, DIM).repeat(3);
    let verdicts = check_rows(&states, &[&[1, 2], &[1, 2], &[3]], &batch, DIM);
    assert_eq!(kinds(&verdicts), ["ok", "ok", "duplicate"]);
}

/// Prompts cut at the same place: this must not take time that grows with the square.
#[test]
fn many_states_of_equal_tokens_are_no_burden() {
    const MANY: usize = 50_000;
    let states = states(0..MANY as u64);
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    let (tokens, other): (&[u32], &[u32]) = (&[1, 2], &[3]);
    let mut all = vec![tokens; MANY];
    all[MANY - 1] = other;
    let verdicts = check_rows(&states, &all, &row(1, 4).repeat(MANY), 4);
    assert!(verdicts[..MANY - 1].iter().all(Result::is_ok));
    assert!(matches!(verdicts[MANY - 1], Err(BadRow::Duplicate { .. })));
}

#[test]
fn two_rows_of_one_state_must_agree() {
    let mut checker = RowChecker::new(DIM);
    let key = StateKey::of("a");
    let near: Vec<f32> = row(1, DIM).iter().map(|value| value * 1.000_1).collect();
    let verdicts = checker.check(&[key, key, key], &[row(1, DIM), near, row(2, DIM)].concat());
    assert_eq!(kinds(&verdicts), ["ok", "ok", "conflict"]);
}

#[test]
fn a_norm_far_from_the_others_is_bad_also_in_the_first_batch() {
    let mut batch = rows(0..100, DIM);
    batch[40 * DIM..41 * DIM].iter_mut().for_each(|value| *value *= 1e3);
    batch[60 * DIM..61 * DIM].iter_mut().for_each(|value| *value *= 1e-3);
    let verdicts = RowChecker::new(DIM).check(&keys(100), &batch);
    let bad: Vec<usize> = (0..100).filter(|&i| verdicts[i].is_err()).collect();
    assert_eq!(bad, [40, 60]);
}

#[test]
fn a_norm_that_proves_unusual_later_is_found_at_the_end() {
    let mut checker = RowChecker::new(DIM);
    let keys = keys(200);
    let mut first = rows(0..10, DIM);
    first[..DIM].iter_mut().for_each(|value| *value *= 1e3);
    assert!(checker.check(&keys[..10], &first).iter().all(Result::is_ok), "too few to tell");
    checker.check(&keys[10..], &rows(10..200, DIM));
    let outliers = checker.norm_outliers();
    assert_eq!(outliers.iter().map(|outlier| outlier.row).collect::<Vec<_>>(), [0]);
    checker.retract(keys[0]);
    assert!(checker.norm_outliers().is_empty());
}

#[test]
fn values_whose_squares_overflow_are_finite() {
    let huge: Vec<f32> = row(1, DIM).iter().map(|value| value * 1e30).collect();
    assert_eq!(RowChecker::new(DIM).check(&keys(1), &huge), [Ok(())]);
}

#[test]
fn rows_without_columns_are_zero() {
    assert_eq!(kinds(&RowChecker::new(0).check(&keys(2), &[])), ["zero_norm", "zero_norm"]);
}

proptest! {
    #[test]
    fn good_rows_pass_whatever_their_dimension_and_batches(
        dim in 2_usize..300, count in 1_u64..120, batch in 1_usize..50
    ) {
        let (keys, all) = (keys(count), rows(0..count, dim));
        let mut checker = RowChecker::new(dim);
        for (keys, rows) in keys.chunks(batch).zip(all.chunks(batch * dim)) {
            prop_assert!(checker.check(keys, rows).iter().all(Result::is_ok));
        }
        prop_assert!(checker.norm_outliers().is_empty());
    }

    #[test]
    fn a_value_that_is_not_finite_is_found_anywhere(
        dim in 1_usize..300, at in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let mut bad = row(1, dim);
        let column = at.index(dim);
        bad[column] = value;
        let verdicts = RowChecker::new(dim).check(&keys(1), &bad);
        let found = matches!(verdicts[0], Err(BadRow::NonFinite { column: c, .. }) if c == column);
        prop_assert!(found, "{:?}", verdicts);
    }

    /// Rounding noise does not hide a copy; a difference of one token in thousands is no copy.
    #[test]
    fn copies_are_told_from_likenesses(dim in 8_usize..600, seed in 0_u64..10_000, scale in 0.1_f32..100.0) {
        let original: Vec<f32> = row(seed, dim).iter().map(|v| v * scale).collect();
        let noise = row(seed + 1, dim);
        let mixed = |share: f32| -> Vec<f32> {
            original.iter().zip(&noise).map(|(v, n)| v + share * scale * n).collect()
        };
        let check = |other: Vec<f32>| {
            kinds(&RowChecker::new(dim).check(&keys(2), &[original.clone(), other].concat()))[1]
        };
        prop_assert_eq!(check(mixed(2e-7)), "duplicate");
        prop_assert_eq!(check(mixed(3e-4)), "ok");
    }
}
