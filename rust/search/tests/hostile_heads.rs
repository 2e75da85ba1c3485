//! Bytes of any kind give a head or an error, never a panic.
//!
//! Starts from valid files, and flips, cuts, splices and forges them. The target `head` in `rust/fuzz` does
//! the same under a coverage-guided fuzzer. Which error a user reads for which fault is in
//! `tests/test_energy_head.py`.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use ebm_search::{EnergyHead, HeadError};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{File, container, numbers};

/// Opens bytes, and uses the head if there is one.
fn open(bytes: &[u8]) -> Result<EnergyHead, HeadError> {
    let head = EnergyHead::from_bytes("fuzz", bytes)?;
    assert!(head.dim() > 0 && head.members() > 0);
    if head.dim() <= 1000 {
        match head.energies(&numbers(3 * head.dim(), 1)) {
            Ok(energies) => assert!(energies.iter().all(|energy| energy.is_finite())),
            Err(error) => assert!(matches!(error, HeadError::Overflow { .. }), "{error}"),
        }
    }
    Ok(head)
}

fn seeds() -> Vec<File> {
    let mut mixed = File::new(&[6, 5, 1], 2);
    let policy = json!({"mean": -3.5, "deviation": 1.25, "depth_exponent": 0.5});
    mixed.head["mixing"] = json!({"weight": 0.75, "policy": policy});
    vec![File::new(&[3, 1], 1), mixed]
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for seed in seeds() {
        let bytes = seed.bytes();
        for end in 0..bytes.len() {
            let error = open(&bytes[..end]).unwrap_err();
            assert!(matches!(error, HeadError::Format { .. }), "{error}");
        }
        assert!(open(&[&bytes[..], b"\0"].concat()).is_err());
        assert!(open(&bytes).is_ok());
    }
}

#[test]
fn any_flipped_bit_gives_a_head_or_an_error() {
    for seed in seeds() {
        let bytes = seed.bytes();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[place] ^= 1 << bit;
                let _ = open(&changed);
            }
        }
    }
}

/// Replaces one value in the JSON object of a head, found by its path.
fn with_key(path: &[&str], value: &Value) -> Vec<u8> {
    let mut file = seeds().pop().unwrap();
    let mut place = &mut file.head;
    for key in path {
        place = &mut place[*key];
    }
    *place = value.clone();
    file.bytes()
}

const KEYS: [&[&str]; 14] = [
    &["identity"],
    &["identity", "dtype"],
    &["architecture"],
    &["architecture", "dims"],
    &["architecture", "activation"],
    &["architecture", "members"],
    &["sign"],
    &["score_scale"],
    &["score_scale", "mean"],
    &["score_scale", "deviation"],
    &["mixing", "weight"],
    &["mixing", "policy"],
    &["mixing", "policy", "deviation"],
    &["mixing", "policy", "depth_exponent"],
];

#[test]
fn a_value_of_another_kind_is_an_error_that_says_which_key() {
    for path in KEYS {
        let wrong = [json!([]), json!(-1), json!({"x": null}), json!("x"), json!(1.5), json!(0)];
        for value in wrong {
            let Err(error) = open(&with_key(path, &value)) else { continue };
            let message = error.to_string();
            assert!(message.contains(&format!("head key \"{}", path[0])), "{path:?}: {message}");
        }
    }
}

#[test]
fn forged_offsets_and_shapes_are_errors() {
    let head = json!(seeds()[0].head.to_string());
    let metadata = json!({"format": "ebm-encode-head", "version": "1", "head": head});
    let forged = |offsets: Value, shape: Value| {
        let bias = json!({"dtype": "F32", "shape": [1], "data_offsets": [12, 16]});
        let weight = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        let header = json!({"__metadata__": metadata, "member.0.layer.0.weight": weight,
            "member.0.layer.0.bias": bias});
        open(&container(&header.to_string(), &[0; 16]))
    };
    forged(json!([0, 12]), json!([1, 3])).unwrap();
    for offsets in [[4, 16], [12, 0], [0, 16], [0, u64::MAX], [u64::MAX, u64::MAX], [0, 8]] {
        forged(json!(offsets), json!([1, 3])).unwrap_err();
    }
    for shape in [json!([3, 1]), json!([1, u64::MAX]), json!([u64::MAX, u64::MAX]), json!([3])] {
        forged(json!([0, 12]), shape).unwrap_err();
    }
    forged(json!([0, 0]), json!([0, 3])).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(open(&bytes).is_err());
        let header = String::from_utf8_lossy(&bytes).into_owned();
        prop_assert!(open(&container(&header, &bytes)).is_err());
    }

    #[test]
    fn spliced_files_give_a_head_or_an_error(
        which in 0_usize..2,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        length in 0_usize..40,
    ) {
        let mut bytes = seeds()[which].bytes();
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let start = cut.index(bytes.len());
        let end = (start + length).min(bytes.len());
        let _ = open(&bytes);
        bytes.drain(start..end);
        let _ = open(&bytes);
    }

    #[test]
    fn any_number_in_the_metadata_gives_a_head_or_an_error(
        key in 0..KEYS.len(),
        number in prop_oneof![
            any::<u64>().prop_map(|number| json!(number)),
            any::<i64>().prop_map(|number| json!(number)),
            any::<f64>().prop_map(|number| json!(number)),
            prop::collection::vec(any::<u64>(), 0..5).prop_map(|dims| json!(dims)),
        ],
    ) {
        let _ = open(&with_key(KEYS[key], &number));
    }
}
