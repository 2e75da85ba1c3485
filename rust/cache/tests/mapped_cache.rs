//! A mapped cache gives the same rows as one in memory, or says why not.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use common::{append_good, identity, open, other_identity, provenance, rows, states};
use ebm_cache::{
    Cache, CacheError, Checks, Checksums, EmbeddingCache, MANIFEST, MappedCache, OpenMode,
    OpenOptions,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// A cache of several pages and row groups.
fn write(folder: &Path, count: u64, dim: usize) -> PathBuf {
    let path = folder.join("a.parquet");
    let mut writer = open(&path, dim, 10_000);
    append_good(&mut writer, &states(0..count), &rows(0..count, dim));
    writer.finish(provenance()).unwrap();
    path
}

#[test]
fn every_row_is_that_of_the_cache_in_memory() {
    let folder = TempDir::new().unwrap();
    let (count, dim) = (2500, 300);
    let path = write(folder.path(), count, dim);
    let (memory, mapped) =
        (EmbeddingCache::open(&path).unwrap(), MappedCache::open(&path).unwrap());
    assert_eq!((mapped.len(), mapped.dim()), (memory.len(), memory.dim()));
    assert_eq!(mapped.identity(), memory.identity());
    assert_eq!(mapped.provenance(), memory.provenance());
    let mut all = vec![0.0; memory.matrix().len()];
    mapped.gather(&states(0..count), &mut all).unwrap();
    assert_eq!(all, memory.matrix());
    let mut row = vec![0.0; dim];
    for number in [0, 1, 1023, 1024, 2499] {
        assert_eq!(mapped.state(number), memory.state(number));
        assert!(mapped.read(memory.state(number), &mut row).unwrap());
        assert_eq!(row, memory.row(number));
    }
    assert!(!mapped.read("no such state", &mut row).unwrap());
}

#[test]
fn many_threads_may_read_at_once() {
    let folder = TempDir::new().unwrap();
    let path = write(folder.path(), 1500, 100);
    let mapped = MappedCache::open(&path).unwrap();
    thread::scope(|scope| {
        for start in 0..8 {
            let mapped = &mapped;
            scope.spawn(move || {
                let numbers: Vec<usize> = (0..1500).map(|i| (i * 7 + start * 131) % 1500).collect();
                let mut found = vec![0.0; numbers.len() * 100];
                mapped.gather_rows(&numbers, &mut found).unwrap();
                for (number, row) in numbers.iter().zip(found.chunks(100)) {
                    assert_eq!(row, common::row(*number as u64, 100));
                }
            });
        }
    });
}

#[test]
fn parts_are_mapped_as_one_and_a_later_row_of_a_state_counts() {
    let around = TempDir::new().unwrap();
    let folder = around.path().join("cache");
    fs::create_dir(&folder).unwrap();
    for numbers in [0..30, 30..50] {
        let mut writer = open(&folder, 8, 100);
        append_good(&mut writer, &states(numbers.clone()), &rows(numbers, 8));
        writer.finish(provenance()).unwrap();
    }
    let mapped = MappedCache::open(&folder).unwrap();
    let mut found = vec![0.0; 50 * 8];
    mapped.gather(&states(0..50), &mut found).unwrap();
    assert_eq!(found, rows(0..50, 8));
    // A file from elsewhere has other rows of some states, a little off.
    let near: Vec<f32> = rows(10..15, 8).iter().map(|value| value * 1.001).collect();
    let made = around.path().join("part-000000009.parquet");
    let mut writer = open(&made, 8, 100);
    append_good(&mut writer, &states(10..15), &near);
    writer.finish(provenance()).unwrap();
    fs::remove_file(folder.join(MANIFEST)).unwrap();
    fs::rename(&made, folder.join("part-000000009.parquet")).unwrap();
    let mapped = MappedCache::open(&folder).unwrap();
    assert_eq!(mapped.len(), 55);
    mapped.gather(&states(0..50), &mut found).unwrap();
    let mut expected = rows(0..50, 8);
    expected[80..120].copy_from_slice(&near);
    assert_eq!(found, expected);
    let memory = EmbeddingCache::open(&folder).unwrap();
    assert_eq!(memory.get(&states(12..13)[0]).unwrap(), &near[16..24]);
    mapped.require_identity(&identity(), "mine").unwrap();
    let refused = mapped.require_identity(&other_identity(), "mine").unwrap_err();
    assert!(matches!(refused, CacheError::IdentityMismatch { .. }), "{refused}");
}

#[test]
fn what_is_not_there_is_refused() {
    let folder = TempDir::new().unwrap();
    let mapped = MappedCache::open(write(folder.path(), 5, 4)).unwrap();
    let mut rows = [0.0; 8];
    let unknown = mapped.gather(&["no such state", "nor this"], &mut rows).unwrap_err();
    assert!(matches!(unknown, CacheError::Unknown { count: 2, .. }), "{unknown}");
    for (numbers, rows) in [(&[0, 5][..], &mut rows[..]), (&[0], &mut [0.0; 3])] {
        let refused = mapped.gather_rows(numbers, rows).unwrap_err();
        assert!(matches!(refused, CacheError::Argument(_)), "{refused}");
    }
    let missing = MappedCache::open(folder.path().join("b.parquet")).unwrap_err();
    assert!(matches!(missing, CacheError::NotFound { .. }), "{missing}");
    let empty = folder.path().join("empty.parquet");
    fs::write(&empty, "").unwrap();
    let refused = MappedCache::open(&empty).unwrap_err();
    assert!(matches!(refused, CacheError::Format { .. }), "{refused}");
}

#[test]
fn a_small_cache_is_held_in_memory_unless_told_otherwise() {
    let folder = TempDir::new().unwrap();
    let path = write(folder.path(), 5, 4);
    let opened = |mode| Cache::open(&path, mode).unwrap();
    assert!(matches!(opened(OpenMode::Auto), Cache::InMemory(_)));
    assert!(matches!(opened(OpenMode::InMemory), Cache::InMemory(_)));
    assert!(matches!(opened(OpenMode::Mapped), Cache::Mapped(_)));
    let bytes = 5 * 4 * 4;
    let prefers = |free| Cache::prefers_mapped(&path, free).unwrap();
    assert!(!prefers(Some(2 * bytes)), "half of what is free");
    assert!(prefers(Some(2 * bytes - 1)));
    assert!(!prefers(None), "where the system does not tell");
}

/// The bytes of a small cache.
fn seed() -> &'static [u8] {
    static SEED: OnceLock<Vec<u8>> = OnceLock::new();
    SEED.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        fs::read(write(folder.path(), 40, 8)).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_flipped_bit_is_refused_or_changes_nothing(
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let folder = TempDir::new().unwrap();
        let (count, dim) = (40, 8);
        let path = folder.path().join("a.parquet");
        let mut bytes = seed().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let mut found = vec![0.0; 40 * dim];
        let read = MappedCache::open(&path).and_then(|mapped| {
            mapped.gather(&states(0..count), &mut found)?;
            Ok(mapped)
        });
        match read {
            Ok(mapped) => {
                prop_assert_eq!(found, rows(0..count, dim));
                prop_assert_eq!(mapped.identity(), Some(&identity()));
            }
            Err(error) => prop_assert!(error.to_string().contains("a.parquet"), "{}", error),
        }
    }
}

#[test]
fn all_rows_are_checked_against_one_another_on_demand() {
    let folder = TempDir::new().unwrap();
    let good = write(folder.path(), 3000, 4);
    MappedCache::open(&good).unwrap().check_all().unwrap();
    // Two equal rows, far apart, as other software may write them into pages of ours.
    let lenient = EmbeddingCache::open_with(&good, Checks::Lenient).unwrap();
    let mut bytes = fs::read(&good).unwrap();
    let place = |row: usize, bytes: &[u8]| {
        let values: Vec<u8> = lenient.row(row).iter().flat_map(|v| v.to_le_bytes()).collect();
        (bytes.windows(values.len()).position(|window| window == values).unwrap(), values)
    };
    let (first, values) = place(5, &bytes);
    let (last, _) = place(2900, &bytes);
    assert!(last > first);
    bytes[last..last + values.len()].copy_from_slice(&values);
    let copied = folder.path().join("copied.parquet");
    fs::write(&copied, bytes).unwrap();
    let trusting = OpenOptions::default().with_checksums(Checksums::Trust);
    let mapped = MappedCache::open_with(&copied, trusting).unwrap();
    let mut row = [0.0; 4];
    mapped.gather_rows(&[2900], &mut row).unwrap(); // its page by itself shows nothing
    let error = mapped.check_all().unwrap_err();
    assert!(matches!(error, CacheError::BadRows { count: 1, .. }), "{error}");
}
