//! The file that grows into the output: written once, read back at any time, taken up after a crash.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{append_good, open, provenance, refs, row, rows, states};
use ebm_cache::{EmbeddingCache, Manifest, ROW_GROUP_ROWS, RowFile};
use proptest::prelude::*;
use tempfile::TempDir;

const DIM: usize = 4;

fn work_folder(output: &Path) -> PathBuf {
    if output.is_dir() { output.join(".partial") } else { output.with_extension("parquet.partial") }
}

/// The growing file of an output.
fn growing(output: &Path) -> PathBuf {
    let mut files = fs::read_dir(work_folder(output)).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|ending| ending == "rows")).unwrap()
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn assert_holds(output: &Path, numbers: std::ops::Range<u64>) {
    let cache = EmbeddingCache::open(output).unwrap();
    let found: Vec<_> = cache.iter().map(|(state, row)| (state.to_owned(), row.to_vec())).collect();
    let expected = states(numbers.clone()).into_iter().zip(numbers.map(|i| row(i, DIM)));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn a_row_is_written_once() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 2000);
    for start in (0..5000).step_by(40) {
        append_good(&mut writer, &states(start..start + 40), &rows(start..start + 40, DIM));
    }
    writer.checkpoint().unwrap();
    let grown = fs::metadata(growing(&output)).unwrap();
    assert!(grown.len() > 4096 * DIM as u64 * 4, "all whole row groups are in it");
    writer.finish(provenance()).unwrap();
    assert_eq!(fs::metadata(&output).unwrap().ino(), grown.ino(), "it became the output");
    assert_holds(&output, 0..5000);
    let groups = RowFile::open(&output).unwrap().group_rows().to_vec();
    assert_eq!(groups, [ROW_GROUP_ROWS, ROW_GROUP_ROWS, ROW_GROUP_ROWS, ROW_GROUP_ROWS, 904]);
}

#[test]
fn small_checkpoints_are_put_together() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 2000);
    for start in (0..2400).step_by(300) {
        append_good(&mut writer, &states(start..start + 300), &rows(start..start + 300, DIM));
        writer.checkpoint().unwrap();
    }
    // Two footers of whole row groups, and the last 352 rows: 52 and 300.
    let mut left: Vec<_> = fs::read_dir(work_folder(&output))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.ends_with(".parquet"))
        .collect();
    left.sort_unstable();
    assert_eq!(left.len(), 4, "{left:?}");
    let numbers = writer.new_rows();
    let read = writer.read(&numbers).unwrap();
    assert_eq!(read.iter().map(|(state, _)| state.clone()).collect::<Vec<_>>(), states(0..2400));
    assert_eq!(
        read.iter().flat_map(|(_, row)| row.clone()).collect::<Vec<_>>(),
        rows(0..2400, DIM)
    );
    drop(writer);
    open(&output, DIM, 2000).finish(provenance()).unwrap();
    assert_holds(&output, 0..2400);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no work folder is left");
}

#[test]
fn what_was_torn_or_damaged_in_the_growing_file_is_not_taken_up() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 1024);
    append_good(&mut writer, &states(0..1024), &rows(0..1024, DIM));
    let first = fs::metadata(growing(&output)).unwrap().len();
    append_good(&mut writer, &states(1024..2048), &rows(1024..2048, DIM));
    drop(writer);
    let grown = growing(&output);
    fs::OpenOptions::new().append(true).open(&grown).unwrap().write_all(&[7; 999]).unwrap();
    let mut bytes = fs::read(&grown).unwrap();
    bytes[usize::try_from(first).unwrap() - 1] ^= 1;
    fs::write(&grown, bytes).unwrap();

    let mut writer = open(&output, DIM, 1024);
    assert_eq!((writer.len(), writer.discarded().len()), (1024, 1));
    assert!(writer.discarded()[0].contains("checksum"), "{:?}", writer.discarded());
    assert!(writer.contains(&states(1024..1025)[0]));
    append_good(&mut writer, &states(0..1024), &rows(0..1024, DIM));
    writer.finish(provenance()).unwrap();
    assert_eq!(EmbeddingCache::open(&output).unwrap().len(), 2048);
}

#[test]
fn a_growing_file_that_is_gone_is_told_unless_it_became_the_output() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let checkpointed = |rows_gone: bool| {
        let mut writer = open(&output, DIM, 1024);
        append_good(&mut writer, &states(0..1100), &rows(0..1100, DIM));
        drop(writer);
        if rows_gone {
            fs::remove_file(growing(&output)).unwrap();
        }
    };
    checkpointed(true);
    let writer = open(&output, DIM, 1024);
    assert_eq!((writer.len(), writer.discarded().len()), (0, 1));
    drop(writer);
    assert!(!work_folder(&output).exists(), "nothing is left of it");

    // Killed after the output was in its place, before the footers were removed.
    let mut writer = open(&output, DIM, 1024);
    append_good(&mut writer, &states(0..1100), &rows(0..1100, DIM));
    let saved = folder.path().join("saved");
    copy_files(&work_folder(&output), &saved);
    writer.finish(provenance()).unwrap();
    copy_files(&saved, &work_folder(&output));
    fs::remove_file(growing(&output)).unwrap();
    let before = fs::read(&output).unwrap();
    let writer = open(&output, DIM, 1024);
    assert_eq!((writer.len(), writer.discarded().len()), (1100, 0));
    assert!(!writer.finish(provenance()).unwrap().written);
    assert_eq!(fs::read(&output).unwrap(), before);
}

#[test]
fn a_part_is_the_grown_file_and_is_not_written_again_after_a_crash() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("cache.parquet");
    fs::create_dir(&output).unwrap();
    let parts = || -> Manifest {
        serde_json::from_slice(&fs::read(output.join("manifest.json")).unwrap()).unwrap()
    };
    let mut writer = open(&output, DIM, 1024);
    append_good(&mut writer, &states(0..1500), &rows(0..1500, DIM));
    writer.checkpoint().unwrap();
    let grown = fs::metadata(growing(&output)).unwrap().ino();
    let saved = folder.path().join("saved");
    copy_files(&work_folder(&output), &saved);
    assert_eq!(writer.commit(provenance()).unwrap(), 1500);
    assert_eq!(fs::metadata(output.join("part-000000000.parquet")).unwrap().ino(), grown);
    append_good(&mut writer, &states(1500..3000), &rows(1500..3000, DIM));
    writer.finish(provenance()).unwrap();
    assert_holds(&output, 0..3000);
    let before = parts();
    assert_eq!(before.parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [1500, 1500]);

    // Killed after the manifest listed the first part, before the checkpoints were removed.
    copy_files(&saved, &work_folder(&output));
    let mut writer = open(&output, DIM, 1024);
    assert_eq!((writer.len(), writer.discarded().len()), (3000, 0));
    append_good(&mut writer, &states(3000..3010), &rows(3000..3010, DIM));
    writer.finish(provenance()).unwrap();
    assert_holds(&output, 0..3010);
    assert_eq!(parts().parts[..2], before.parts, "they stand as they were");
    assert_eq!(parts().parts.len(), 3);
}

#[test]
fn a_footer_without_rows_is_refused_by_readers() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("out.parquet");
    let mut writer = open(&output, DIM, 1024);
    append_good(&mut writer, &states(0..1024), &rows(0..1024, DIM));
    let refused = EmbeddingCache::open(work_folder(&output).join("part-000000000.parquet"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("part-000000000.rows"), "{refused}");
}

#[derive(Debug, Clone)]
enum Step {
    Append(u64),
    Checkpoint,
    Retract(prop::sample::Index),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..900).prop_map(Step::Append),
        2 => Just(Step::Checkpoint),
        1 => any::<prop::sample::Index>().prop_map(Step::Retract),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens on the way, the output has each row that was not taken back, and after the last
    /// crash nothing is lost that was checkpointed before it.
    #[test]
    fn any_run_ends_with_its_rows(
        steps in prop::collection::vec(step(), 1..14),
        checkpoint in prop_oneof![1_usize..300, 1000..2200_usize],
        as_part in any::<bool>(),
    ) {
        let folder = TempDir::new().unwrap();
        let output = folder.path().join("out.parquet");
        if as_part {
            fs::create_dir(&output).unwrap();
        }
        let mut writer = open(&output, DIM, checkpoint);
        let (mut next, mut expected, mut saved) = (0, BTreeMap::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Append(count) => {
                    let (texts, values) = (states(next..next + count), rows(next..next + count, DIM));
                    writer.append(&refs(&texts), &values).unwrap();
                    expected.extend(texts.into_iter().zip(next..next + count));
                    next += count;
                }
                Step::Checkpoint => {
                    writer.checkpoint().unwrap();
                    saved = expected.clone();
                }
                Step::Retract(index) if !expected.is_empty() => {
                    let state = expected.keys().nth(index.index(expected.len())).cloned().unwrap();
                    prop_assert!(writer.retract(&state));
                    // It may come back after a crash, as what took it back is not written down.
                    expected.remove(&state);
                    saved.remove(&state);
                }
                Step::Retract(_) => {}
                Step::Crash => {
                    drop(writer);
                    writer = open(&output, DIM, checkpoint);
                    prop_assert!(writer.discarded().is_empty());
                    prop_assert!(saved.keys().all(|state| writer.contains(state)));
                    let found = writer.new_rows();
                    prop_assert!(found.len() <= usize::try_from(next).unwrap());
                    expected = BTreeMap::new();
                    for (state, values) in writer.read(&found).unwrap() {
                        let number = (0..next).find(|i| states(*i..*i + 1)[0] == state).unwrap();
                        prop_assert_eq!(&values, &row(number, DIM));
                        expected.insert(state, number);
                    }
                    saved = expected.clone();
                }
            }
        }
        let report = writer.finish(provenance()).unwrap();
        prop_assert_eq!(report.rows, expected.len() as u64);
        let cache = EmbeddingCache::open(&output).unwrap();
        let found: BTreeMap<_, _> =
            cache.iter().map(|(state, row)| (state.to_owned(), row.to_vec())).collect();
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|(state, number)| (state, row(number, DIM))).collect();
        prop_assert_eq!(found, expected);
    }
}
