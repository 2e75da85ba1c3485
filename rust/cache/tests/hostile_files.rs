//! Bytes of any kind give a cache or an error, never a panic or a wrong row.
//!
//! Starts from real cache files, and flips, cuts, splices and overwrites their bytes. The target
//! in `rust/fuzz` does the same under a coverage-guided fuzzer.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::{append_good, open, provenance, rows, states};
use ebm_cache::{Checks, Checksums, EmbeddingCache, MappedCache, OpenOptions, describe};
use proptest::prelude::*;
use tempfile::TempDir;

/// A cache file of 40 rows, small enough to try every bit: one row group with one page of embeddings.
fn seed() -> &'static [u8] {
    static SEED: OnceLock<Vec<u8>> = OnceLock::new();
    SEED.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("seed.parquet");
        let mut writer = open(&output, 8, 15);
        append_good(&mut writer, &states(0..40), &rows(0..40, 8));
        writer.finish(provenance()).unwrap();
        std::fs::read(output).unwrap()
    })
}

/// A cache file of two row groups with several pages each.
fn large_seed() -> &'static [u8] {
    static SEED: OnceLock<Vec<u8>> = OnceLock::new();
    SEED.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("seed.parquet");
        let mut writer = open(&output, 400, 2000);
        append_good(&mut writer, &states(0..1600), &rows(0..1600, 400));
        writer.finish(provenance()).unwrap();
        assert_eq!(describe(&output).unwrap()[0].row_groups, 2);
        std::fs::read(output).unwrap()
    })
}

/// Opens bytes in both ways; a panic that escapes fails the test.
fn open_bytes(bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    for checks in [Checks::Strict, Checks::Lenient] {
        if let Ok(cache) = EmbeddingCache::from_bytes("fuzz", bytes.clone(), checks) {
            for (state, row) in cache.iter() {
                assert_eq!(row.len(), cache.dim());
                assert!(cache.get(state).is_some());
            }
        }
    }
}

/// The reader turns the decoder's own panics into errors; their messages would drown the test's.
fn quiet_decoder_panics() {
    static ONCE: OnceLock<()> = OnceLock::new();
    static CAUGHT: AtomicUsize = AtomicUsize::new(0);
    ONCE.get_or_init(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let inside = info.location().is_some_and(|l| !l.file().contains("ebm"));
            if inside && info.location().is_some_and(|l| l.file().contains("registry")) {
                CAUGHT.fetch_add(1, Ordering::Relaxed);
            } else {
                usual(info);
            }
        }));
    });
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    quiet_decoder_panics();
    let seed = seed();
    for end in 0..seed.len() {
        let bytes = Bytes::from(seed[..end].to_vec());
        assert!(EmbeddingCache::from_bytes("cut", bytes, Checks::Lenient).is_err(), "cut at {end}");
    }
}

/// Checksums of the pages, a digest of our metadata, and what the reader knows of our writer's layout
/// leave no bit that changes what is read.
#[test]
fn a_flipped_bit_is_refused_or_changes_nothing() {
    quiet_decoder_panics();
    // Files on disk are read in another way than those in memory.
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("f.parquet");
    let from_memory =
        |bytes: Vec<u8>| EmbeddingCache::from_bytes("f", bytes.into(), Checks::Lenient);
    let from_disk = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        EmbeddingCache::open_with(&path, Checks::Lenient)
    };
    let truth = from_memory(seed().to_vec()).unwrap();
    for position in 0..seed().len() {
        for bit in 0..8 {
            let mut bytes = seed().to_vec();
            bytes[position] ^= 1 << bit;
            for found in [from_disk(&bytes), from_memory(bytes)].into_iter().flatten() {
                let same = found.iter().eq(truth.iter())
                    && found.identity() == truth.identity()
                    && found.provenance() == truth.provenance();
                assert!(same, "bit {bit} of byte {position} of {}", seed().len());
            }
        }
    }
}

/// Who trusts a file gets what is there; nobody else does.
#[test]
fn checksums_are_verified_unless_the_file_is_trusted() {
    let truth = rows(0..40, 8);
    let wanted = truth[100].to_le_bytes();
    let at = seed().windows(4).position(|bytes| bytes == wanted).unwrap();
    let mut bytes = seed().to_vec();
    bytes[at] ^= 1;
    let mut changed = truth.clone();
    changed[100] = f32::from_bits(truth[100].to_bits() ^ 1);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("f.parquet");
    std::fs::write(&path, &bytes).unwrap();
    let trust = OpenOptions::default().with_checksums(Checksums::Trust);
    let mut row = [0.0; 8];
    let memory = EmbeddingCache::from_bytes("f", bytes.clone().into(), trust).unwrap();
    assert_eq!(memory.matrix(), changed);
    assert_eq!(EmbeddingCache::open_with(&path, trust).unwrap().matrix(), changed);
    MappedCache::open_with(&path, trust).unwrap().gather_rows(&[12], &mut row).unwrap();
    assert_eq!(row.as_slice(), &changed[96..104]);
    let verify = OpenOptions::default();
    for error in [
        EmbeddingCache::from_bytes("f", bytes.into(), verify).unwrap_err(),
        EmbeddingCache::open_with(&path, verify).unwrap_err(),
        MappedCache::open(&path).unwrap().gather_rows(&[12], &mut row).unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(said.contains("row group 0") && said.contains("checksum"), "{said}");
    }
}

#[test]
fn every_byte_may_be_flipped() {
    quiet_decoder_panics();
    for position in 0..seed().len() {
        let mut bytes = seed().to_vec();
        bytes[position] ^= 0xFF;
        open_bytes(bytes);
    }
}

/// Small files of `pyarrow`, `polars` and `DuckDB`, which the fuzzer begins with, too.
#[test]
fn files_of_others_may_have_any_byte_flipped() {
    quiet_decoder_panics();
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/reader");
    let mut tried = 0;
    for file in std::fs::read_dir(seeds).unwrap() {
        let whole = std::fs::read(file.unwrap().path()).unwrap();
        for position in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[position] ^= 0xFF;
            open_bytes(bytes);
        }
        tried += 1;
    }
    assert!(tried >= 10, "only {tried} files");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn mangled_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        splice in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0_usize..64)),
        // Half of the edits go to the footer, where the structure is.
        footer in any::<bool>(),
    ) {
        quiet_decoder_panics();
        let mut bytes = seed().to_vec();
        let from = if footer { bytes.len() - bytes.len() / 3 } else { 0 };
        for (at, value) in edits {
            let position = from + at.index(bytes.len() - from);
            bytes[position] = value;
        }
        if let Some((source, target, length)) = splice {
            let (source, target) = (source.index(bytes.len()), target.index(bytes.len()));
            let piece = bytes[source..(source + length).min(bytes.len())].to_vec();
            bytes.splice(target..target, piece);
        }
        open_bytes(bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        quiet_decoder_panics();
        open_bytes([b"PAR1".as_slice(), &bytes, b"PAR1"].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// With several row groups and pages: what is read is the same, or refused, from memory, from disk
    /// and mapped.
    #[test]
    fn a_flipped_bit_of_a_larger_file_is_refused_or_changes_nothing(
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
        // Where the structure is: the last bytes are the metadata.
        in_metadata in any::<bool>(),
    ) {
        quiet_decoder_panics();
        let mut bytes = large_seed().to_vec();
        let from = if in_metadata { bytes.len() - 8000 } else { 0 };
        let position = from + at.index(bytes.len() - from);
        bytes[position] ^= 1 << bit;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("f.parquet");
        std::fs::write(&path, &bytes).unwrap();
        let (texts, truth) = (states(0..1600), rows(0..1600, 400));
        let memory = EmbeddingCache::from_bytes("f", bytes.into(), Checks::Lenient);
        for cache in [memory, EmbeddingCache::open_with(&path, Checks::Lenient)].into_iter().flatten() {
            prop_assert!(cache.iter().map(|(state, _)| state).eq(&texts), "byte {}", position);
            prop_assert!(cache.matrix() == truth, "byte {}", position);
        }
        let mut found = vec![0.0; truth.len()];
        let read = MappedCache::open(&path).and_then(|mapped| mapped.gather(&texts, &mut found));
        prop_assert!(read.is_err() || found == truth, "byte {}", position);
    }
}
