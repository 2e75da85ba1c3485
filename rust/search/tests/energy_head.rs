//! Energies by the formula, whatever the batch and the threads; and what a head refuses.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::path::Path;

use ebm_cache::{Cache, EmbeddingCache, OutputLock, WriterOptions};
use ebm_search::{EnergyHead, HeadError};
use serde_json::json;
use support::{File, identity, identity_with, numbers};

const ARCHITECTURES: [(&[usize], usize); 8] = [
    (&[1, 1], 1),
    (&[300, 1], 1),
    (&[17, 1, 1], 1),
    (&[40, 65, 1], 1),
    (&[37, 71, 3, 1], 2),
    (&[1500, 256, 64, 1], 1),
    (&[1, 2, 130, 1], 3),
    (&[24, 2048, 1024, 512, 1], 1),
];

#[test]
fn energies_are_those_of_the_formula() {
    for (dims, members) in ARCHITECTURES {
        let file = File::new(dims, members);
        let head = file.head();
        let rows = numbers(70 * dims[0], 7);
        let right: Vec<f64> = rows.chunks(dims[0]).map(|row| file.energy(row)).collect();
        let largest = right.iter().fold(0.0_f64, |largest, energy| largest.max(energy.abs()));
        for (found, right) in head.energies(&rows).unwrap().iter().zip(&right) {
            assert!((f64::from(*found) - right).abs() <= 1e-5 * largest, "{dims:?}");
        }
        assert_eq!(head.energies(&[]).unwrap(), [0.0; 0]);
    }
}

#[test]
fn neither_batch_nor_threads_change_a_bit() {
    for (dims, members) in ARCHITECTURES {
        let head = File::new(dims, members).head();
        let rows = numbers(150 * dims[0], 3);
        let together = head.energies(&rows).unwrap();
        for size in [1, 2, 3, 5, 8, 31, 63, 64, 65, 149] {
            let parts = rows.chunks(size * dims[0]).flat_map(|rows| head.energies(rows).unwrap());
            let parts: Vec<u32> = parts.map(f32::to_bits).collect();
            let whole: Vec<u32> = together.iter().map(|energy| energy.to_bits()).collect();
            assert_eq!(parts, whole, "{dims:?} by {size}");
        }
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| head.energies(&rows).unwrap()), together);
        }
    }
}

#[test]
fn a_lower_energy_is_a_higher_score() {
    let mut file = File::new(&[2, 1], 1);
    let values = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    file.tensors[0].3 = values(&[1.0, -2.0]);
    file.tensors[1].3 = values(&[0.5]);
    let head = file.head();
    let rows = [1.0, 0.0, 0.0, 1.0];
    assert_eq!(head.energies(&rows).unwrap(), [1.5, -1.5]);
    assert_eq!(head.scores(&rows).unwrap(), [-1.5, 1.5]);
    assert_eq!(head.z_scores(&rows).unwrap(), [-0.5, 1.0]);
}

#[test]
fn rows_that_are_no_embeddings_are_refused() {
    let head = File::new(&[8, 4, 1], 1).head();
    let rows = numbers(24, 1);
    let error = head.energies(&rows[..23]).unwrap_err();
    assert!(matches!(error, HeadError::Length { values: 23, dim: 8 }), "{error}");
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bad = rows.clone();
        bad[13] = value;
        let error = head.scores(&bad).unwrap_err();
        assert!(matches!(error, HeadError::NonFinite { row: 1, column: 5, .. }), "{error}");
    }
    let mut large = rows;
    large[8..16].fill(f32::MAX);
    let error = head.z_scores(&large).unwrap_err();
    assert!(matches!(error, HeadError::Overflow { row: 1 }), "{error}");
}

#[test]
fn a_head_reads_what_it_says_of_itself() {
    let mut file = File::new(&[8, 4, 1], 2);
    let policy = json!({"mean": -3.5, "deviation": 1.25, "depth_exponent": 0.5});
    file.head["mixing"] = json!({"weight": 0.75, "policy": policy});
    file.head["training"] = json!({"epochs": 3});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    std::fs::write(&path, file.bytes()).unwrap();
    let head = EnergyHead::open(&path).unwrap();
    assert_eq!((head.dim(), head.dims(), head.members()), (8, &[8, 4, 1][..], 2));
    assert_eq!(*head.identity(), identity());
    assert_eq!((head.score_scale().mean, head.score_scale().deviation), (-0.5, 2.0));
    let mixing = head.mixing().unwrap();
    assert_eq!((mixing.weight, mixing.depth_exponent), (0.75, 0.5));
    assert_eq!((mixing.policy.mean, mixing.policy.deviation), (-3.5, 1.25));
    assert_eq!(head.metadata()["training"]["epochs"], 3);
    assert_eq!(head.path(), path);
    let missing = EnergyHead::open(folder.path().join("none")).unwrap_err();
    assert!(matches!(missing, HeadError::NotFound { .. }), "{missing}");
    let url = format!("file://{}", path.display());
    assert_eq!(EnergyHead::open(url).unwrap().dims(), head.dims());
}

fn cache(path: &Path, dtype: &str, dim: usize) -> Cache {
    let options = WriterOptions::default();
    let mut writer =
        OutputLock::acquire(path).unwrap().open(identity_with(dtype), dim, options).unwrap();
    writer.append(&["a"], &numbers(dim, 5)).unwrap();
    writer.finish(json!({})).unwrap();
    EmbeddingCache::open(path).unwrap().into()
}

#[test]
fn embeddings_of_a_different_encoder_are_refused_with_the_fields() {
    let head = File::new(&[8, 4, 1], 1).head();
    head.require_identity(Some(&identity()), "the encoder").unwrap();
    let error = head.require_identity(Some(&identity_with("float16")), "the encoder").unwrap_err();
    let message = error.to_string();
    let expected = "test: trained on embeddings of a different encoder than the encoder; different: \
                    dtype (float32 here, float16 there)\nhint: ";
    assert!(message.starts_with(expected), "{message}");
    let error = head.require_identity(None, "a file").unwrap_err();
    assert!(error.to_string().contains("unknown there"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    head.require_cache(&cache(&folder.path().join("same.parquet"), "float32", 8)).unwrap();
    let other = cache(&folder.path().join("other.parquet"), "bfloat16", 8);
    let error = head.require_cache(&other).unwrap_err();
    assert!(error.to_string().contains("other.parquet; different: dtype"), "{error}");
    let wide = cache(&folder.path().join("wide.parquet"), "float32", 9);
    let error = head.require_cache(&wide).unwrap_err();
    assert!(matches!(error, HeadError::Dim { dim: 9, expected: 8, .. }), "{error}");
}
