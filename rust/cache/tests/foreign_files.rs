//! Files that other software wrote are read right by every reader, or refused with the row's number.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray};
use common::{identity, row};
use ebm_cache::{
    Cache, CacheError, Checks, EmbeddingCache, MappedCache, OpenOptions, OutputLock, StateKey,
    WriterOptions, audit, describe,
};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};
use tempfile::TempDir;

type List = Option<Vec<Option<f32>>>;

#[expect(clippy::unnecessary_wraps, reason = "lists beside it are null")]
fn some(values: &[f32]) -> List {
    Some(values.iter().copied().map(Some).collect())
}

/// Writes lists for the states `s0`, `s1` and so on; a state is null where there is `None`.
fn write(path: &Path, lists: Vec<List>, null_state: Option<usize>, how: WriterProperties) {
    let states = (0..lists.len()).map(|i| (Some(i) != null_state).then(|| format!("s{i}")));
    let states: StringArray = states.collect();
    let lists = ListArray::from_iter_primitive::<Float32Type, _, _>(lists);
    let columns = [("state_pp", Arc::new(states) as ArrayRef), ("embedding", Arc::new(lists))];
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(how)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn file_of(lists: Vec<List>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("theirs.parquet");
    write(&path, lists, None, WriterProperties::default());
    (folder, path)
}

/// What opening says, in each way: the row at fault.
fn row_at_fault(path: &Path) -> Vec<u64> {
    let row_of = |error: CacheError| match error {
        CacheError::Row { row, .. } => row,
        other => panic!("{other}"),
    };
    let options = |checks| OpenOptions::default().with_checks(checks);
    [Checks::Strict, Checks::Lenient]
        .into_iter()
        .map(|checks| row_of(EmbeddingCache::open_with(path, options(checks)).unwrap_err()))
        .collect()
}

#[test]
fn lists_without_values_are_refused_by_every_reader_and_listed_by_the_audit() {
    let (folder, path) = file_of(vec![some(&[]), some(&[]), some(&[])]);
    assert_eq!(row_at_fault(&path), [0, 0]);
    assert!(MappedCache::open(&path).is_err());
    assert!(MappedCache::open_with(&path, Checks::Lenient.into()).is_err());
    let said = EmbeddingCache::open(&path).unwrap_err().to_string();
    assert!(said.contains("no values") && said.contains("\nhint: "), "{said}");
    let report = audit(&path, 10).unwrap();
    assert_eq!((report.rows, report.dim, report.bad["malformed"]), (3, 0, 3));
    assert_eq!(describe(&path).unwrap()[0].rows, 3);
    assert!(!Cache::prefers_mapped(&path, Some(1)).unwrap());
    // Nor may a writer that adds to such a file.
    let lock = OutputLock::acquire(&path).unwrap();
    assert!(lock.open(identity(), 4, WriterOptions::default()).is_err());
    drop(folder);
}

#[test]
fn the_audit_lists_every_malformed_row_and_goes_on() {
    let good = |seed| some(&row(seed, 4));
    let null_value = Some(vec![Some(1.0), None, Some(1.0), Some(1.0)]);
    let short = some(&row(9, 3));
    let lists =
        vec![some(&[]), good(0), None, good(1), short, null_value, good(0), some(&[0.0; 4])];
    let (_folder, path) = file_of(lists);
    assert_eq!(row_at_fault(&path), [2, 2], "nulls are looked for before lengths");
    let report = audit(&path, 10).unwrap();
    assert_eq!((report.rows, report.dim), (8, 4));
    let at = |kind: &str| -> Vec<u64> {
        let examples = report.examples.iter().filter(|example| example.kind == kind);
        examples.map(|example| example.row).collect()
    };
    assert_eq!(at("malformed"), [0, 2, 4, 5]);
    assert_eq!((at("duplicate"), at("zero_norm")), (vec![6], vec![7]));
    let duplicate = report.examples.iter().find(|example| example.kind == "duplicate").unwrap();
    assert!(duplicate.reason.contains("row 1,"), "the number in the file: {}", duplicate.reason);
    assert_eq!(duplicate.state, "\"s6\"");
    assert_eq!(report.bad_rows(), 6);
}

#[test]
fn null_states_and_lists_are_named_wherever_they_are() {
    for at in [0, 5, 1500] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("theirs.parquet");
        let lists = |null: Option<usize>| -> Vec<List> {
            (0..1600)
                .map(|i| (Some(i) != null).then(|| row(i as u64, 3)).and_then(|r| some(&r)))
                .collect()
        };
        write(&path, lists(Some(at)), None, WriterProperties::default());
        assert_eq!(row_at_fault(&path), [at as u64; 2]);
        assert_eq!(audit(&path, 3).unwrap().bad["malformed"], 1);
        write(&path, lists(None), Some(at), WriterProperties::default());
        assert_eq!(row_at_fault(&path), [at as u64; 2]);
        assert_eq!(audit(&path, 3).unwrap().bad["malformed"], 1);
    }
}

#[test]
fn rows_are_the_same_however_they_are_laid_out() {
    let plain = || WriterProperties::builder().set_max_row_group_row_count(Some(300));
    let layouts = [
        plain().build(),
        plain().set_dictionary_enabled(false).build(),
        plain().set_dictionary_enabled(false).set_data_page_size_limit(700).build(),
        plain().set_writer_version(WriterVersion::PARQUET_2_0).build(),
        plain()
            .set_writer_version(WriterVersion::PARQUET_2_0)
            .set_dictionary_enabled(false)
            .set_compression(Compression::SNAPPY)
            .set_data_page_row_count_limit(17)
            .set_write_batch_size(17)
            .build(),
    ];
    let folder = TempDir::new().unwrap();
    for (number, layout) in layouts.into_iter().enumerate() {
        for dim in [1, 2, 37] {
            let path = folder.path().join(format!("{number}-{dim}.parquet"));
            let rows: Vec<Vec<f32>> = (0..1000).map(|seed| row(seed, dim)).collect();
            write(&path, rows.iter().map(|row| some(row)).collect(), None, layout.clone());
            let cache = EmbeddingCache::open_with(&path, Checks::Lenient).unwrap();
            assert_eq!((cache.len(), cache.dim()), (1000, dim));
            assert_eq!(cache.matrix(), rows.concat(), "layout {number} of dim {dim}");
            assert!(cache.runs().is_empty() && cache.identity().is_none());
            assert_eq!(audit(&path, 3).unwrap().rows, 1000);
            if let Ok(mapped) = MappedCache::open_with(&path, Checks::Lenient.into()) {
                let mut found = vec![0.0; 1000 * dim];
                mapped.gather_rows(&(0..1000).collect::<Vec<_>>(), &mut found).unwrap();
                assert_eq!(found, rows.concat());
            }
        }
    }
}

#[test]
fn metadata_that_is_no_text_is_told_from_no_parquet_file() {
    let (_folder, path) = file_of((0..5).map(|seed| some(&row(seed, 4))).collect());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(10).position(|bytes| bytes == b"parquet-rs").unwrap();
    bytes[at] = 0xFF;
    std::fs::write(&path, bytes).unwrap();
    let said = EmbeddingCache::open(&path).unwrap_err().to_string();
    assert!(said.contains("not UTF-8") && said.contains("\nhint: "), "{said}");
}

#[test]
fn a_file_without_rows_is_a_cache_without_rows() {
    let (_folder, path) = file_of(Vec::new());
    let cache = EmbeddingCache::open(&path).unwrap();
    assert!(cache.is_empty() && cache.matrix().is_empty());
    assert!(MappedCache::open(&path).unwrap().is_empty());
    assert_eq!(audit(&path, 3).unwrap().rows, 0);
}

#[test]
fn a_query_of_another_length_has_no_neighbours() {
    let (_folder, path) = file_of((0..5).map(|seed| some(&row(seed, 4))).collect());
    let cache = EmbeddingCache::open(&path).unwrap();
    assert_eq!(cache.nearest(cache.row(2), 1).unwrap()[0].row, 2);
    for length in [0, 3, 5] {
        let refused = cache.nearest(&vec![1.0; length], 1).unwrap_err();
        assert!(matches!(refused, CacheError::Argument(_)), "{refused}");
    }
}

#[test]
fn a_key_is_thirty_two_digits_and_nothing_else() {
    let key = StateKey::of("a").to_hex();
    assert_eq!(StateKey::from_hex(&key), Some(StateKey::of("a")));
    let signed = format!("+{}", &key[1..]);
    for wrong in ["", "f", "+f", &key[1..], &signed, &format!("{key}0")] {
        assert_eq!(StateKey::from_hex(wrong), None, "{wrong:?}");
    }
}
