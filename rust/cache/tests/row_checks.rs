//! The faults of real servers must be caught, and nothing else.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use common::{row, rows, states};
use ebm_cache::{BadRow, RowChecker, StateKey, check_rows};
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

/// Rows near the edges of the grid's cells, in bulk: those within the tolerance are found, others pass.
#[test]
fn no_copy_slips_between_two_cells_and_no_likeness_is_taken_for_one() {
    const PAIRS: u64 = 100_000;
    const WIDTH: usize = 8; // as many as numbers in a sketch, which then is the row itself
    let shifted = |seed: u64, distance: f32| -> Vec<f32> {
        let (centre, direction) = (row(seed, WIDTH), row(seed + PAIRS, WIDTH));
        let norm = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let scale = distance * norm(&centre) / norm(&direction);
        centre.iter().zip(&direction).map(|(v, d)| v + scale * d).collect()
    };
    let key = |name: &str, seed: u64| StateKey::of(&format!("{name} {seed}"));
    for (distance, expected) in [(1e-6, "duplicate"), (4e-6, "ok")] {
        let mut checker = RowChecker::new(WIDTH);
        for seed in 0..PAIRS {
            let keys = [key("centre", seed), key("other", seed)];
            let rows = [row(seed, WIDTH), shifted(seed, distance)].concat();
            let found = kinds(&checker.check_without_norms(&keys, &rows));
            assert_eq!(found, ["ok", expected], "pair {seed} at {distance}");
        }
    }
}

/// In dimension 1 a row is its norm, so what equals what is plain.
#[derive(Debug, Clone)]
enum Step {
    Offer(u8, u8),
    Allow(u8, u8),
    Retract(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..8_u8, 0..12_u8).prop_map(|(state, place)| Step::Offer(state, place)),
        2 => (0..8_u8, 0..8_u8).prop_map(|(left, right)| Step::Allow(left, right)),
        3 => (0..8_u8).prop_map(Step::Retract),
    ]
}

#[test]
fn a_row_and_its_multiple_are_not_two_rows_of_one_state() {
    let key = StateKey::of("a");
    let double: Vec<f32> = row(1, DIM).iter().map(|value| value * 2.0).collect();
    let verdicts = RowChecker::new(DIM).check(&[key, key], &[row(1, DIM), double].concat());
    assert_eq!(kinds(&verdicts), ["ok", "conflict"]);
}

#[test]
fn one_state_s_verdict_does_not_depend_on_the_norms_of_others_in_the_call() {
    let states = states(0..100);
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    let ids: Vec<[u32; 1]> = (0..100).map(|i| [i]).collect();
    let tokens: Vec<&[u32]> = ids.iter().map(<[u32; 1]>::as_slice).collect();
    let mut all = rows(0..100, DIM);
    all[..DIM].iter_mut().for_each(|value| *value *= 1e3);
    for count in [1, 10, 80, 100] {
        let verdicts = check_rows(&states[..count], &tokens[..count], &all[..count * DIM], DIM);
        assert!(verdicts.iter().all(Result::is_ok), "among {count}: {verdicts:?}");
    }
}

proptest! {
    /// Whatever was allowed and taken back before, a row is refused if and only if a live row of another
    /// state with other tokens equals it, or the live row of its state is far from it.
    #[test]
    fn the_live_rows_alone_decide(steps in prop::collection::vec(step(), 1..60)) {
        let keys: Vec<StateKey> = (0..8).map(|i| StateKey::of(&format!("{i}"))).collect();
        let value = |place: u8| 1.0 + f32::from(place) * 9e-7;
        let equal = |l: f32, r: f32| (l - r).abs() <= 2e-6 * l.min(r);
        let mut checker = RowChecker::new(1);
        let mut class: Vec<usize> = (0..8).collect();
        let mut live: Vec<(usize, f32)> = Vec::new();
        for step in steps {
            match step {
                Step::Allow(left, right) => {
                    let (from, to) = (class[usize::from(left)], class[usize::from(right)]);
                    checker.allow_equal(keys[usize::from(left)], keys[usize::from(right)]);
                    class.iter_mut().filter(|c| **c == from).for_each(|c| *c = to);
                }
                Step::Retract(state) => {
                    checker.retract(keys[usize::from(state)]);
                    live.retain(|(other, _)| *other != usize::from(state));
                }
                Step::Offer(state, place) => {
                    let (state, value) = (usize::from(state), value(place));
                    let good = live.iter().all(|(o, v)| class[*o] == class[state] || !equal(*v, value));
                    let found = checker.check_without_norms(&[keys[state]], &[value]);
                    prop_assert_eq!(found[0].is_ok(), good, "{:?} of {:?}", found, live);
                    if good {
                        live.push((state, value));
                    }
                }
            }
        }
        // In any other order they are good as well.
        let mut again = RowChecker::new(1);
        for (left, of) in class.iter().enumerate() {
            let right = class.iter().position(|c| c == of).unwrap();
            again.allow_equal(keys[left], keys[right]);
        }
        for (state, value) in live.iter().rev() {
            prop_assert!(again.check_without_norms(&[keys[*state]], &[*value])[0].is_ok());
        }
    }

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
