//! A folder of many parts is one cache, whatever happens to its parts.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{
    append_good, file_names, identity, open, other_identity, provenance, row, rows, states,
};
use ebm_cache::{
    CacheError, Checks, EmbeddingCache, MANIFEST, Manifest, OutputLock, Run, WriterOptions, audit,
    compact, describe,
};
use proptest::prelude::*;
use tempfile::TempDir;

const DIM: usize = 8;

/// A folder with parts of 30, 20 and 10 rows.
fn three_parts() -> (TempDir, PathBuf) {
    let around = TempDir::new().unwrap();
    let folder = around.path().join("cache");
    fs::create_dir(&folder).unwrap();
    for numbers in [0..30, 30..50, 50..60] {
        add(&folder, numbers);
    }
    (around, folder)
}

fn add(folder: &Path, numbers: std::ops::Range<u64>) {
    let mut writer = open(folder, DIM, 7);
    append_good(&mut writer, &states(numbers.clone()), &rows(numbers, DIM));
    assert!(writer.finish(provenance()).unwrap().written);
}

fn manifest(folder: &Path) -> Manifest {
    serde_json::from_slice(&fs::read(folder.join(MANIFEST)).unwrap()).unwrap()
}

fn assert_holds(folder: &Path, numbers: std::ops::Range<u64>) {
    let cache = EmbeddingCache::open(folder).unwrap();
    let expected = states(numbers.clone());
    assert_eq!(cache.iter().map(|(state, _)| state.to_owned()).collect::<Vec<_>>(), expected);
    assert_eq!(cache.matrix(), rows(numbers, DIM));
    assert_eq!(cache.identity(), Some(&identity()));
}

#[test]
fn each_run_adds_a_part_and_leaves_the_others_alone() {
    let (_around, folder) = three_parts();
    assert_holds(&folder, 0..60);
    let parts = manifest(&folder).parts;
    assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [30, 20, 10]);
    let first = fs::metadata(folder.join(&parts[0].file)).unwrap().modified().unwrap();
    add(&folder, 60..61);
    assert_holds(&folder, 0..61);
    assert_eq!(manifest(&folder).parts[..3], parts);
    assert_eq!(fs::metadata(folder.join(&parts[0].file)).unwrap().modified().unwrap(), first);
    assert_eq!(describe(&folder).unwrap().len(), 4);
    assert_eq!(audit(&folder, 3).unwrap().bad_rows(), 0);
}

#[test]
fn a_writer_that_goes_on_shows_its_rows_at_each_commit() {
    let (_around, folder) = three_parts();
    let mut writer = open(&folder, DIM, 7);
    for end in [65_u64, 66, 90] {
        let numbers = writer.len() as u64..end;
        append_good(&mut writer, &states(numbers.clone()), &rows(numbers, DIM));
        assert_eq!(writer.commit(provenance()).unwrap(), end);
        assert_holds(&folder, 0..end);
        let parts = manifest(&folder).parts.len();
        assert_eq!(writer.commit(provenance()).unwrap(), end);
        assert_eq!(manifest(&folder).parts.len(), parts, "nothing new makes no part");
    }
    // Rows are still found, and a row that no longer counts is in no part.
    assert_eq!(writer.read(&[64]).unwrap(), [(states(64..65).remove(0), row(64, DIM))]);
    assert!(writer.is_former(&states(89..90)[0]) && writer.new_rows().is_empty());
    assert!(writer.retract(&states(89..90)[0]));
    assert_eq!(writer.commit(provenance()).unwrap(), 89);
    assert_holds(&folder, 0..89);
    assert_eq!(manifest(&folder).parts.len(), 1);
    append_good(&mut writer, &states(89..95), &rows(89..95, DIM));
    assert!(writer.finish(provenance()).unwrap().written);
    assert_holds(&folder, 0..95);
    assert_eq!(file_names(&folder).len(), 3);
    assert_eq!(audit(&folder, 3).unwrap().bad_rows(), 0);
}

#[test]
fn a_writer_that_dies_after_a_commit_leaves_what_it_committed_and_saved() {
    let (_around, folder) = three_parts();
    let mut writer = open(&folder, DIM, 7);
    append_good(&mut writer, &states(60..70), &rows(60..70, DIM));
    writer.commit(provenance()).unwrap();
    append_good(&mut writer, &states(70..77), &rows(70..77, DIM));
    drop(writer);
    assert_holds(&folder, 0..70);
    let writer = open(&folder, DIM, 7);
    assert_eq!(writer.len(), 77, "checkpoints are every 7 rows");
    writer.finish(provenance()).unwrap();
    assert_holds(&folder, 0..77);
}

#[test]
fn a_file_cannot_be_committed_to() {
    let around = TempDir::new().unwrap();
    let mut writer = open(&around.path().join("a.parquet"), DIM, 7);
    append_good(&mut writer, &states(0..3), &rows(0..3, DIM));
    let error = writer.commit(provenance()).unwrap_err();
    assert!(matches!(&error, CacheError::Argument(_)) && error.to_string().contains("a.parquet"));
    assert_eq!(writer.finish(provenance()).unwrap().rows, 3);
}

#[test]
fn nothing_new_makes_no_part() {
    let (_around, folder) = three_parts();
    let before = file_names(&folder);
    let mut writer = open(&folder, DIM, 7);
    writer.append(&["n : ℕ\nh3 : n = 3\n⊢ n + 0 = 3"], &row(3, DIM)).unwrap();
    assert!(!writer.finish(provenance()).unwrap().written);
    assert_eq!(file_names(&folder), before);
}

#[test]
fn compacting_makes_one_part_of_the_rows_that_count() {
    let (_around, folder) = three_parts();
    let report = compact(&folder).unwrap();
    assert_eq!((report.rows, report.written), (60, true));
    assert_holds(&folder, 0..60);
    assert_eq!(file_names(&folder), [MANIFEST, "part-000000003.parquet"], "a name not used before");
    let cache = EmbeddingCache::open(&folder).unwrap();
    assert_eq!(cache.runs(), [Run::new(60, provenance())], "three runs that say the same");
    assert!(!compact(&folder).unwrap().written, "one part stays as it is");
    add(&folder, 60..70);
    assert_holds(&folder, 0..70);
}

#[test]
fn overwriting_replaces_all_parts() {
    let (_around, folder) = three_parts();
    let options = WriterOptions::default().with_overwrite(true);
    let lock = OutputLock::acquire(&folder).unwrap();
    let mut writer = lock.open(other_identity(), DIM, options).unwrap();
    append_good(&mut writer, &states(0..5), &rows(0..5, DIM));
    assert_eq!(EmbeddingCache::open(&folder).unwrap().len(), 60, "the former stand to the end");
    writer.finish(provenance()).unwrap();
    let cache = EmbeddingCache::open(&folder).unwrap();
    assert_eq!((cache.len(), cache.identity()), (5, Some(&other_identity())));
    assert_eq!(manifest(&folder).parts.len(), 1);
}

#[test]
fn parts_of_another_encoder_are_refused() {
    let (_around, folder) = three_parts();
    let lock = OutputLock::acquire(&folder).unwrap();
    let refused = lock.open(other_identity(), DIM, WriterOptions::default()).unwrap_err();
    assert!(matches!(refused, CacheError::IdentityMismatch { .. }), "{refused}");
}

#[test]
fn what_an_interrupted_writer_left_is_no_part() {
    let (_around, folder) = three_parts();
    let parts = manifest(&folder).parts;
    // Killed after the part was there and before the manifest listed it.
    let stray = folder.join("part-000000003.parquet");
    fs::copy(folder.join(&parts[0].file), &stray).unwrap();
    assert_holds(&folder, 0..60);
    add(&folder, 60..65);
    assert_holds(&folder, 0..65);
    assert_eq!(manifest(&folder).parts.len(), 4);
    assert!(stray.exists(), "nobody's file is removed or written over");
    // Killed after the manifest was replaced and before the former parts were removed.
    compact(&folder).unwrap();
    fs::copy(&stray, folder.join(&parts[1].file)).unwrap();
    assert_holds(&folder, 0..65);
    add(&folder, 65..66);
    assert_holds(&folder, 0..66);
    assert!(!folder.join(&parts[1].file).exists());
    assert!(stray.exists());
}

#[test]
fn a_folder_of_files_without_a_manifest_gets_one() {
    let (_around, folder) = three_parts();
    fs::remove_file(folder.join(MANIFEST)).unwrap();
    assert_holds(&folder, 0..60);
    add(&folder, 60..62);
    assert_eq!(manifest(&folder).parts.len(), 4);
    assert_holds(&folder, 0..62);
}

#[test]
fn of_two_rows_of_a_state_the_later_part_s_counts() {
    let (_around, folder) = three_parts();
    // Two parts with rows of the same states, as two machines may have made them.
    let other = TempDir::new().unwrap();
    let output = other.path().join("part-000000009.parquet");
    let mut writer = open(&output, DIM, 7);
    let near: Vec<f32> = rows(0..10, DIM).iter().map(|value| value * 1.000_001).collect();
    append_good(&mut writer, &states(0..10), &near);
    writer.finish(provenance()).unwrap();
    fs::remove_file(folder.join(MANIFEST)).unwrap();
    fs::copy(&output, folder.join("part-000000009.parquet")).unwrap();
    let cache = EmbeddingCache::open_with(&folder, Checks::Lenient).unwrap();
    assert_eq!(cache.get(&states(3..4)[0]), Some(&near[3 * DIM..4 * DIM]));
    let report = compact(&folder).unwrap();
    assert_eq!(report.rows, 60);
    let cache = EmbeddingCache::open(&folder).unwrap();
    assert_eq!(cache.len(), 60);
    assert_eq!(cache.get(&states(3..4)[0]), Some(&near[3 * DIM..4 * DIM]));
}

#[test]
fn what_cannot_be_compacted_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a.parquet");
    let mut writer = open(&file, DIM, 7);
    append_good(&mut writer, &states(0..3), &rows(0..3, DIM));
    writer.finish(provenance()).unwrap();
    let refused = compact(&file).unwrap_err();
    assert!(matches!(refused, CacheError::Argument(_)), "{refused}");
    let missing = compact(folder.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, CacheError::NotFound { .. }), "{missing}");
    assert_eq!(file_names(folder.path()), ["a.parquet"], "no lock is left");
}

/// What may happen to a folder behind the manifest's back.
#[derive(Debug, Clone)]
enum Harm {
    Missing(usize),
    Cut(usize, prop::sample::Index),
    Flip(usize, prop::sample::Index, u8),
    Swap(usize, usize),
    Manifest(prop::sample::Index, u8),
}

fn harm() -> impl Strategy<Value = Harm> {
    use prop::sample::Index;
    prop_oneof![
        (0..3_usize).prop_map(Harm::Missing),
        (0..3_usize, any::<Index>()).prop_map(|(part, at)| Harm::Cut(part, at)),
        (0..3_usize, any::<Index>(), 0..8_u8).prop_map(|(part, at, bit)| Harm::Flip(part, at, bit)),
        (0..3_usize, 0..3_usize).prop_map(|(left, right)| Harm::Swap(left, right)),
        (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Harm::Manifest(at, bit)),
    ]
}

fn flip(path: &Path, at: prop::sample::Index, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.index(bytes.len());
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_harmed_folder_is_refused_or_reads_the_same(harm in harm()) {
        let (_around, folder) = three_parts();
        let part = |i: usize| folder.join(&manifest(&folder).parts[i].file);
        match harm.clone() {
            Harm::Missing(i) => fs::remove_file(part(i)).unwrap(),
            Harm::Cut(i, at) => {
                let bytes = fs::read(part(i)).unwrap();
                fs::write(part(i), &bytes[..at.index(bytes.len())]).unwrap();
            }
            Harm::Flip(i, at, bit) => flip(&part(i), at, bit),
            Harm::Swap(left, right) => {
                let (left, right) = (part(left), part(right));
                let between = folder.join("between");
                fs::rename(&left, &between).unwrap();
                if left != right {
                    fs::rename(&right, &left).unwrap();
                }
                fs::rename(&between, &right).unwrap();
            }
            Harm::Manifest(at, bit) => flip(&folder.join(MANIFEST), at, bit),
        }
        match EmbeddingCache::open(&folder) {
            Ok(cache) => {
                prop_assert_eq!(cache.len(), 60);
                for number in 0..60 {
                    let state = &states(number..number + 1)[0];
                    prop_assert_eq!(cache.get(state).unwrap(), row(number, DIM));
                }
                prop_assert_eq!(cache.identity(), Some(&identity()));
            }
            Err(error) => {
                let named = error.to_string();
                prop_assert!(named.contains(&folder.display().to_string()), "{}", named);
            }
        }
    }
}
