//! What is written is what is read, however often the writer was interrupted.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::{append_good, identity, open, other_identity, provenance, refs, row, rows, states};
use ebm_cache::{
    BadRow, CacheError, Checks, EmbeddingCache, OutputLock, StateKey, Verdict, WriterOptions,
    audit, describe,
};
use proptest::prelude::*;
use tempfile::TempDir;

const DIM: usize = 8;

fn assert_holds(path: &Path, states: &[String], rows: &[f32]) {
    let cache = EmbeddingCache::open(path).unwrap();
    assert_eq!(cache.len(), states.len());
    for (state, row) in states.iter().zip(rows.chunks(DIM)) {
        assert_eq!(cache.get(state), Some(row), "{state:?}");
    }
}

#[test]
fn a_finished_cache_holds_every_row_and_says_who_made_it() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let (states, rows) = (states(0..5000), rows(0..5000, DIM));
    let mut writer = open(&output, DIM, 700);
    for (states, rows) in states.chunks(300).zip(rows.chunks(300 * DIM)) {
        append_good(&mut writer, states, rows);
    }
    let report = writer.finish(provenance()).unwrap();
    assert_eq!((report.rows, report.written, report.left_out), (5000, true, vec![]));
    assert_holds(&output, &states, &rows);
    let cache = EmbeddingCache::open(&output).unwrap();
    assert_eq!((cache.dim(), cache.identity()), (DIM, Some(&identity())));
    assert_eq!(cache.provenance(), [provenance()]);
    assert_eq!(cache.iter().map(|(state, _)| state.to_owned()).collect::<Vec<_>>(), states);
    assert!(cache.get("no such state").is_none());
    let groups = describe(&output).unwrap()[0].row_groups;
    assert!((5..=9).contains(&groups), "row groups of 512 to 1,024 rows, not {groups}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no work folder is left");
}

#[test]
fn an_interrupted_run_goes_on_after_its_last_checkpoint() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let (states, rows) = (states(0..100), rows(0..100, DIM));
    let mut writer = open(&output, DIM, 40);
    append_good(&mut writer, &states[..40], &rows[..40 * DIM]);
    append_good(&mut writer, &states[40..60], &rows[40 * DIM..60 * DIM]);
    drop(writer); // as a crash would: the 20 rows since the checkpoint are lost
    assert!(!output.exists());

    let mut writer = open(&output, DIM, 40);
    assert_eq!(writer.len(), 40);
    let verdicts = writer.append(&refs(&states), &rows).unwrap();
    assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Present).count(), 40);
    writer.finish(provenance()).unwrap();
    assert_holds(&output, &states, &rows);
}

#[test]
fn a_later_run_adds_to_a_finished_cache() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let (states, rows) = (states(0..50), rows(0..50, DIM));
    let mut writer = open(&output, DIM, 10);
    append_good(&mut writer, &states[..30], &rows[..30 * DIM]);
    writer.finish(provenance()).unwrap();
    let before = fs::read(&output).unwrap();

    let writer = open(&output, DIM, 10);
    assert!(writer.is_former(&states[0]));
    assert!(!writer.finish(serde_json::Value::Null).unwrap().written, "nothing was new");
    assert_eq!(fs::read(&output).unwrap(), before);

    let mut writer = open(&output, DIM, 10);
    append_good(&mut writer, &states[30..], &rows[30 * DIM..]);
    assert_eq!(writer.new_rows().len(), 20);
    writer.finish(provenance()).unwrap();
    assert_holds(&output, &states, &rows);
}

#[test]
fn another_encoder_is_refused_and_named_unless_overwriting() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 10);
    append_good(&mut writer, &states(0..10), &rows(0..10, DIM));
    drop(writer);
    let lock = || OutputLock::acquire(&output).unwrap();
    let refused = |overwrite| {
        let options = WriterOptions::default().with_overwrite(overwrite);
        lock().open(other_identity(), DIM, options)
    };
    let unfinished = refused(false).unwrap_err();
    assert!(
        matches!(&unfinished, CacheError::IdentityMismatch { differences, .. }
        if differences.len() == 1 && differences[0].field == "dtype"),
        "{unfinished}"
    );

    open(&output, DIM, 10).finish(provenance()).unwrap();
    let finished = refused(false).unwrap_err();
    assert!(matches!(finished, CacheError::IdentityMismatch { .. }), "{finished}");
    let mut writer = refused(true).unwrap();
    assert!(writer.is_empty());
    append_good(&mut writer, &states(0..3), &rows(0..3, DIM));
    assert_eq!(EmbeddingCache::open(&output).unwrap().len(), 10, "the former stands to the end");
    writer.finish(provenance()).unwrap();
    assert_eq!(EmbeddingCache::open(&output).unwrap().len(), 3);
}

#[test]
fn a_second_writer_is_refused_until_the_first_ends() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let first = OutputLock::acquire(&output).unwrap();
    let refused = OutputLock::acquire(&output).unwrap_err();
    assert!(matches!(refused, CacheError::Locked { .. }), "{refused}");
    drop(first);
    OutputLock::acquire(&output).unwrap();
}

#[test]
fn rejected_rows_are_never_resumed() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 100);
    append_good(&mut writer, &states(0..10), &rows(0..10, DIM));
    writer.reject("two rows were swapped").unwrap();
    let lock = OutputLock::acquire(&output).unwrap();
    let refused = lock.open(identity(), DIM, WriterOptions::default()).unwrap_err();
    assert!(matches!(&refused, CacheError::Rejected { detail, .. } if detail.contains("swapped")));
    let options = WriterOptions::default().with_overwrite(true);
    let writer = OutputLock::acquire(&output).unwrap().open(identity(), DIM, options).unwrap();
    assert!(writer.is_empty());
}

#[test]
fn a_damaged_shard_is_dropped_and_named() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 10);
    append_good(&mut writer, &states(0..10), &rows(0..10, DIM));
    append_good(&mut writer, &states(10..20), &rows(10..20, DIM));
    let shard = writer.work_folder().join("part-000000000.parquet");
    drop(writer);
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let mut writer = open(&output, DIM, 10);
    assert_eq!((writer.len(), writer.discarded().len()), (10, 1));
    append_good(&mut writer, &states(0..10), &rows(0..10, DIM));
    writer.finish(provenance()).unwrap();
    assert_eq!(EmbeddingCache::open(&output).unwrap().len(), 20);
}

#[test]
fn bad_rows_are_not_taken_and_can_be_offered_again() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 10);
    let states = states(0..3);
    let faulty = [row(0, DIM), vec![0.0; DIM], row(0, DIM)].concat();
    let verdicts = writer.append(&refs(&states), &faulty).unwrap();
    assert_eq!(verdicts[0], Verdict::Accepted);
    assert!(matches!(verdicts[1], Verdict::Bad(BadRow::ZeroNorm { .. })));
    assert!(matches!(verdicts[2], Verdict::Bad(BadRow::Duplicate { .. })));
    let (text, stored) = writer.stored(StateKey::of(&states[0])).unwrap().unwrap();
    assert_eq!((text, stored), (states[0].clone(), row(0, DIM)));

    append_good(&mut writer, &states[1..2], &row(1, DIM));
    writer.allow_equal(&states[0], &states[2]);
    append_good(&mut writer, &states[2..], &row(0, DIM));
    writer.finish(provenance()).unwrap();
    assert_holds(&output, &states, &[row(0, DIM), row(1, DIM), row(0, DIM)].concat());
    assert_eq!(audit(&output, 3).unwrap().bad_rows(), 0, "the file knows which tokens are equal");
}

#[test]
fn a_retracted_row_gives_way_to_a_later_one_also_after_a_crash() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let states = states(0..2);
    let mut writer = open(&output, DIM, 1);
    append_good(&mut writer, &states, &rows(0..2, DIM));
    assert!(writer.retract(&states[0]));
    assert!(!writer.contains(&states[0]));
    append_good(&mut writer, &states[..1], &row(9, DIM));
    drop(writer);
    open(&output, DIM, 1).finish(provenance()).unwrap();
    assert_holds(&output, &states, &[row(9, DIM), row(1, DIM)].concat());
}

#[test]
fn a_norm_outlier_is_left_out_at_the_end() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let (states, mut rows) = (states(0..200), rows(0..200, DIM));
    rows[..DIM].iter_mut().for_each(|value| *value *= 1e4);
    let mut writer = open(&output, DIM, 50);
    append_good(&mut writer, &states[..20], &rows[..20 * DIM]);
    append_good(&mut writer, &states[20..], &rows[20 * DIM..]);
    let report = writer.finish(provenance()).unwrap();
    assert_eq!(report.left_out.len(), 1);
    assert_eq!(report.left_out[0].0, states[0]);
    assert_holds(&output, &states[1..], &rows[DIM..]);
}

#[test]
fn rows_are_adopted_from_a_cache_of_the_same_encoder_only() {
    let folder = TempDir::new().unwrap();
    let (old, new) = (folder.path().join("old.parquet"), folder.path().join("new.parquet"));
    let (states, rows) = (states(0..30), rows(0..30, DIM));
    let mut writer = open(&old, DIM, 10);
    append_good(&mut writer, &states, &rows);
    writer.finish(provenance()).unwrap();

    let mut writer = open(&new, DIM, 10);
    assert_eq!(writer.adopt(&old, &refs(&states[5..15])).unwrap(), 10);
    writer.finish(provenance()).unwrap();
    assert_holds(&new, &states[5..15], &rows[5 * DIM..15 * DIM]);

    let options = WriterOptions::default().with_overwrite(true);
    let lock = OutputLock::acquire(&new).unwrap();
    let mut other = lock.open(other_identity(), DIM, options).unwrap();
    let refused = other.adopt(&old, &refs(&states)).unwrap_err();
    assert!(matches!(refused, CacheError::IdentityMismatch { .. }), "{refused}");
}

#[test]
fn a_folder_of_shards_is_one_cache_of_one_encoder() {
    let folder = TempDir::new().unwrap();
    let (states, rows) = (states(0..40), rows(0..40, DIM));
    for part in 0..4 {
        let mut writer = open(&folder.path().join(format!("{part}.parquet")), DIM, 10);
        let (from, to) = (part * 10, part * 10 + 10);
        append_good(&mut writer, &states[from..to], &rows[from * DIM..to * DIM]);
        writer.finish(provenance()).unwrap();
    }
    assert_holds(folder.path(), &states, &rows);
    let stray = folder.path().join("4.parquet");
    let lock = OutputLock::acquire(&stray).unwrap();
    let mut writer = lock.open(other_identity(), DIM, WriterOptions::default()).unwrap();
    append_good(&mut writer, &["x".into()], &row(99, DIM));
    writer.finish(provenance()).unwrap();
    let refused = EmbeddingCache::open(folder.path()).unwrap_err();
    assert!(matches!(refused, CacheError::IdentityMismatch { .. }), "{refused}");
}

#[test]
fn a_cache_without_rows_is_a_cache() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    open(&output, DIM, 10).finish(provenance()).unwrap();
    let cache = EmbeddingCache::open(&output).unwrap();
    assert_eq!((cache.len(), cache.dim(), cache.is_empty()), (0, DIM, true));
    assert!(cache.nearest(&row(0, DIM), 3).unwrap().is_empty());
}

#[test]
fn the_nearest_rows_come_first() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, 2, 10);
    let states = ["east", "north", "north-east"].map(String::from);
    append_good(&mut writer, &states, &[1.0, 0.0, 0.0, 2.0, 1.0, 1.1]);
    writer.finish(provenance()).unwrap();
    let cache = EmbeddingCache::open_with(&output, Checks::Lenient).unwrap();
    let near = cache.nearest(cache.get("north").unwrap(), 2).unwrap();
    assert_eq!(
        near.iter().map(|n| cache.state(n.row)).collect::<Vec<_>>(),
        ["north", "north-east"]
    );
    assert!((near[0].cosine - 1.0).abs() < 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any texts, cut into any appends, crashed anywhere: what is in the end is what was given.
    #[test]
    fn any_rows_survive_any_interruptions(
        texts in prop::collection::hash_set(".{0,40}", 1..60),
        steps in prop::collection::vec((1_usize..20, any::<bool>()), 1..12),
        checkpoint in 1_usize..15,
        dim in 2_usize..20,
    ) {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("out.parquet");
        let texts: Vec<String> = texts.into_iter().collect();
        let expected: HashMap<String, Vec<f32>> =
            texts.iter().zip(0..).map(|(text, i)| (text.clone(), row(i, dim))).collect();
        let mut writer = open(&output, dim, checkpoint);
        let mut position = 0;
        for (count, crash) in steps {
            let end = (position + count).min(texts.len());
            let rows: Vec<f32> =
                texts[position..end].iter().flat_map(|text| expected[text].clone()).collect();
            writer.append(&refs(&texts[position..end]), &rows).unwrap();
            position = end;
            if crash {
                drop(writer);
                writer = open(&output, dim, checkpoint);
                position = 0;
            }
        }
        let rows: Vec<f32> = texts.iter().flat_map(|text| expected[text].clone()).collect();
        writer.append(&refs(&texts), &rows).unwrap();
        writer.finish(provenance()).unwrap();
        let cache = EmbeddingCache::open(&output).unwrap();
        let found: HashMap<String, Vec<f32>> =
            cache.iter().map(|(state, row)| (state.to_owned(), row.to_vec())).collect();
        prop_assert_eq!(found, expected);
    }
}
