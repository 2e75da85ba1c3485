//! One output is one lock, wherever it is and however it is spelled, and nobody's rows are replaced unseen.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use std::error::Error;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{append_good, identity, open, provenance, row, rows, states};
use ebm_cache::{
    CacheError, EmbeddingCache, MANIFEST, MappedCache, OutputLock, WriterOptions, audit, compact,
    describe,
};
use tempfile::TempDir;

const DIM: usize = 8;

/// A folder with parts of so many rows each, one after the other.
fn parts(folder: &Path, counts: &[u64]) {
    fs::create_dir_all(folder).unwrap();
    let mut start = 0;
    for count in counts {
        add(folder, start..start + count);
        start += count;
    }
}

fn add(output: &Path, numbers: std::ops::Range<u64>) {
    let mut writer = open(output, DIM, 7);
    append_good(&mut writer, &states(numbers.clone()), &rows(numbers, DIM));
    assert!(writer.finish(provenance()).unwrap().written);
}

fn assert_holds(output: &Path, numbers: std::ops::Range<u64>) {
    let cache = EmbeddingCache::open(output).unwrap();
    assert_eq!(cache.len() as u64, numbers.end - numbers.start);
    for number in numbers {
        assert_eq!(cache.get(&states(number..number + 1)[0]), Some(&row(number, DIM)[..]));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy_files(from: &Path, to: &Path) {
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// A path from the working folder.
fn relative(path: &Path) -> PathBuf {
    let up =
        std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    up.join(path.strip_prefix("/").unwrap())
}

/// Other spellings of a path in `around`, where `link` leads to `around`.
fn spellings(around: &Path, name: &str) -> Vec<String> {
    let (path, here) = (around.join(name), around.file_name().unwrap().to_str().unwrap());
    let shown = around.display();
    vec![
        path.display().to_string(),
        format!("{shown}//{name}"),
        format!("{shown}/./{name}"),
        format!("{shown}/../{here}/{name}"),
        format!("{shown}/deep/../{name}"),
        format!("{shown}/link/{name}"),
        format!("{shown}/to-{name}"),
        format!("file://{}", path.display()),
        relative(&path).display().to_string(),
    ]
}

fn around() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir(path.join("deep")).unwrap();
    symlink(&path, path.join("link")).unwrap();
    (folder, path)
}

#[test]
fn every_spelling_of_an_output_is_one_lock() {
    for (name, made) in [("cache", true), ("a.parquet", true), ("b.parquet", false)] {
        let (_folder, around) = around();
        let path = around.join(name);
        symlink(name, around.join(format!("to-{name}"))).unwrap();
        match name {
            "cache" => parts(&path, &[3]),
            _ if made => add(&path, 0..3),
            _ => {}
        }
        let mut spelled = spellings(&around, name);
        if name == "cache" {
            for end in ["/", "/.", "//", "/./", "/../cache"] {
                spelled.push(format!("{}{end}", path.display()));
            }
        }
        for one in &spelled {
            let held = OutputLock::acquire(one).unwrap();
            assert_eq!(held.output(), path, "{one}");
            for other in &spelled {
                let refused = OutputLock::acquire(other).unwrap_err();
                assert!(matches!(refused, CacheError::Locked { .. }), "{one}, {other}: {refused}");
            }
            if name == "cache" {
                let refused = compact(format!("{}/", path.display())).unwrap_err();
                assert!(matches!(refused, CacheError::Locked { .. }), "{refused}");
            }
        }
        assert_eq!(path.exists(), made);
    }
}

#[test]
fn a_writer_by_another_name_writes_where_the_others_look() {
    let (_folder, around) = around();
    fs::create_dir(around.join("elsewhere")).unwrap();
    symlink("elsewhere/b.parquet", around.join("b.parquet")).unwrap(); // to nothing yet
    add(&around.join("b.parquet"), 0..5);
    assert!(around.join("b.parquet").is_symlink());
    assert_holds(&around.join("elsewhere/b.parquet"), 0..5);
    add(&around.join("link/elsewhere/../elsewhere/b.parquet"), 5..8);
    assert_holds(&around.join("b.parquet"), 0..8);
    assert_eq!(names(&around.join("elsewhere")), ["b.parquet"], "no work folder is left");
}

#[test]
fn paths_that_can_be_no_output_are_refused() {
    let (_folder, around) = around();
    let refused = OutputLock::acquire("").unwrap_err();
    assert!(matches!(&refused, CacheError::Argument(_)), "{refused}");
    assert!(refused.to_string().contains("empty") && refused.to_string().contains("\nhint: "));
    for path in ["new/", "new/.", "deep/new/"] {
        let refused = OutputLock::acquire(around.join("x").with_file_name(path)).unwrap_err();
        assert!(matches!(&refused, CacheError::Argument(_)), "{refused}");
        assert!(refused.to_string().contains("\nhint: "), "{refused}");
    }
    symlink("circle", around.join("circle")).unwrap();
    OutputLock::acquire(around.join("circle")).unwrap_err();
    for read in [EmbeddingCache::open("").err(), MappedCache::open("").err(), compact("").err()] {
        assert!(matches!(read, Some(CacheError::Argument(_))), "{read:?}");
    }
    assert_eq!(names(&around), ["circle", "deep", "link"]);
}

/// What a machine does that does not see the lock, on a network disk for example.
#[test]
fn a_writer_that_was_overtaken_replaces_nothing_and_loses_nothing() {
    let (_folder, around) = around();
    for (name, retract) in [("cache", false), ("cache-rewritten", true)] {
        let (folder, copy) = (around.join(name), around.join(format!("{name}-there")));
        parts(&folder, &[10]);
        fs::create_dir(&copy).unwrap();
        let mut writer = open(&folder, DIM, 100);
        append_good(&mut writer, &states(20..25), &rows(20..25, DIM));
        if retract {
            writer.retract(&states(0..1)[0]);
        }
        fs::copy(folder.join(MANIFEST), copy.join(MANIFEST)).unwrap();
        let first = "part-000000000.parquet";
        fs::copy(folder.join(first), copy.join(first)).unwrap();
        add(&copy, 10..20);
        copy_files(&copy, &folder);
        let refused = writer.commit(provenance()).unwrap_err();
        assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
        let refused = writer.finish(provenance()).unwrap_err();
        assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
        assert!(refused.to_string().contains("\nhint: "), "{refused}");
        assert_holds(&folder, 0..20);
        let writer = open(&folder, DIM, 100);
        // What was taken back is saved, too.
        let kept = u64::from(retract)..25;
        assert_eq!(writer.len() as u64, kept.end - kept.start, "its rows were saved");
        writer.finish(provenance()).unwrap();
        assert_holds(&folder, kept);
    }
    for (name, grown) in [("a.parquet", false), ("b.parquet", true)] {
        let (output, copy) = (around.join(name), around.join(format!("{name}.there")));
        if !grown {
            add(&output, 0..10);
            fs::copy(&output, &copy).unwrap();
        }
        let mut writer = open(&output, DIM, 1024);
        let end = if grown { 2000 } else { 25 };
        append_good(&mut writer, &states(20..end), &rows(20..end, DIM));
        add(&copy, if grown { 0..20 } else { 10..20 });
        fs::rename(&copy, &output).unwrap();
        let refused = writer.finish(provenance()).unwrap_err();
        assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
        assert_holds(&output, 0..20);
        open(&output, DIM, 1024).finish(provenance()).unwrap();
        assert_holds(&output, 0..end);
    }
}

#[test]
fn finishing_the_same_rows_again_succeeds() {
    let (_folder, around) = around();
    fs::create_dir(around.join("cache")).unwrap();
    for output in [around.join("cache"), around.join("a.parquet")] {
        for written in [true, false, false] {
            let mut writer = open(&output, DIM, 7);
            writer.append(&common::refs(&states(0..20)), &rows(0..20, DIM)).unwrap();
            let report = writer.finish(provenance()).unwrap();
            assert_eq!((report.rows, report.written), (20, written));
        }
        assert_holds(&output, 0..20);
    }
    // By another writer, while this one was at work.
    let (output, copy) = (around.join("b.parquet"), around.join("c.parquet"));
    let mut writer = open(&output, DIM, 7);
    append_good(&mut writer, &states(0..20), &rows(0..20, DIM));
    add(&copy, 0..21);
    fs::rename(&copy, &output).unwrap();
    assert!(!writer.finish(provenance()).unwrap().written);
    assert_holds(&output, 0..21);
    // A row that was taken back stands in what the other wrote, so it is not all the same.
    let mut writer = open(&output, DIM, 7);
    assert!(writer.retract(&states(3..4)[0]));
    add(&copy, 0..21);
    fs::rename(&copy, &output).unwrap();
    let refused = writer.finish(provenance()).unwrap_err();
    assert!(matches!(refused, CacheError::Conflict { .. }), "{refused}");
    assert_holds(&output, 0..21);
}

/// A folder of another file system than the one of temporary files, where there is one.
fn elsewhere() -> TempDir {
    let here = TempDir::new().unwrap();
    let device = fs::metadata(here.path()).unwrap().dev();
    let other = |path: &&&str| fs::metadata(path).is_ok_and(|there| there.dev() != device);
    match ["/dev/shm", "/run/shm", "/var/tmp"].iter().find(other) {
        Some(folder) => TempDir::new_in(folder).unwrap(),
        None => here,
    }
}

#[test]
fn a_folder_on_another_disk_is_an_output() {
    let (_folder, around) = around();
    let there = elsewhere();
    let cache = around.join("cache");
    symlink(there.path(), &cache).unwrap();
    // Enough rows for the file that grows, which is linked into the folder.
    let mut writer = open(&cache, DIM, 1024);
    append_good(&mut writer, &states(0..1100), &rows(0..1100, DIM));
    assert_eq!(writer.commit(provenance()).unwrap(), 1100);
    append_good(&mut writer, &states(1100..1200), &rows(1100..1200, DIM));
    writer.checkpoint().unwrap();
    drop(writer);
    assert_holds(&cache, 0..1100);
    let writer = open(&cache, DIM, 1024);
    assert_eq!(writer.len(), 1200);
    writer.finish(provenance()).unwrap();
    assert_holds(&cache, 0..1200);
    compact(&cache).unwrap();
    assert_holds(there.path(), 0..1200);
    assert_eq!(names(there.path()), [MANIFEST, "part-000000002.parquet"]);
    assert_eq!(names(&around), ["cache", "deep", "link"], "nothing was written beside the link");
}

#[test]
fn the_work_folder_of_a_folder_is_no_part_of_the_cache() {
    let (_folder, around) = around();
    let cache = around.join("cache");
    parts(&cache, &[10, 10]);
    let mut writer = open(&cache, DIM, 5);
    append_good(&mut writer, &states(20..27), &rows(20..27, DIM));
    writer.checkpoint().unwrap();
    assert_eq!(writer.work_folder(), cache.join(".partial"));
    for _ in ["with a manifest", "without"] {
        assert_holds(&cache, 0..20);
        assert_eq!(MappedCache::open(&cache).unwrap().len(), 20);
        assert_eq!(audit(&cache, 3).unwrap().rows, 20);
        assert_eq!(describe(&cache).unwrap().len(), 2);
        fs::remove_file(cache.join(MANIFEST)).unwrap_or_default();
    }
}

#[test]
fn checkpoints_of_earlier_versions_are_resumed() {
    for count in [30, 1100] {
        let (_folder, around) = around();
        let (cache, beside) = (around.join("cache"), around.join("cache.partial"));
        parts(&cache, &[10]);
        let mut writer = open(&cache, DIM, 1024);
        append_good(&mut writer, &states(10..count), &rows(10..count, DIM));
        writer.checkpoint().unwrap();
        fs::write(writer.work_folder().join("settings.jsonl"), "{}\n").unwrap();
        drop(writer);
        // Where they were before this version.
        fs::rename(cache.join(".partial"), &beside).unwrap();
        for shard in names(&beside).iter().map(|name| beside.join(name)) {
            if shard.extension().is_some_and(|ending| ending == "shard") {
                fs::rename(&shard, shard.with_extension("parquet")).unwrap();
            }
        }
        {
            let held = fs::File::options().write(true).open(beside.join("lock")).unwrap();
            held.try_lock().unwrap();
            let refused = OutputLock::acquire(&cache).unwrap_err();
            assert!(matches!(refused, CacheError::Locked { .. }), "{refused}");
        }
        let mut writer = open(&cache, DIM, 1024);
        assert_eq!((writer.len() as u64, writer.discarded().len()), (count, 0));
        assert_eq!(fs::read(writer.work_folder().join("settings.jsonl")).unwrap(), b"{}\n");
        append_good(&mut writer, &states(count..count + 5), &rows(count..count + 5, DIM));
        writer.checkpoint().unwrap();
        drop(writer); // and again: now some are here and some are there
        let writer = open(&cache, DIM, 1024);
        assert_eq!(writer.len() as u64, count + 5);
        writer.finish(provenance()).unwrap();
        assert_holds(&cache, 0..count + 5);
        assert_eq!(names(&around), ["cache", "deep", "link"]);
        assert!(!cache.join(".partial").exists());
    }
}

#[test]
fn a_manifest_can_name_parquet_files_of_its_folder_alone() {
    let (_folder, around) = around();
    let cache = around.join("cache");
    parts(&cache, &[10]);
    fs::write(cache.join("notes.txt"), "mine").unwrap();
    fs::write(around.join("x.parquet"), "mine").unwrap();
    let text = fs::read_to_string(cache.join(MANIFEST)).unwrap();
    for name in
        ["notes.txt", "../x.parquet", "/x.parquet", "deep/x.parquet", "", ".parquet", "x.parquet/"]
    {
        for list in ["superseded", "parts"] {
            let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
            if list == "superseded" {
                manifest[list] = serde_json::json!([name]);
            } else {
                manifest[list][0]["file"] = serde_json::json!(name);
            }
            fs::write(cache.join(MANIFEST), manifest.to_string()).unwrap();
            let lock = OutputLock::acquire(&cache).unwrap();
            let refused = lock.open(identity(), DIM, WriterOptions::default()).unwrap_err();
            assert!(matches!(refused, CacheError::Format { .. }), "{name:?}: {refused}");
            EmbeddingCache::open(&cache).unwrap_err();
        }
    }
    assert_eq!(fs::read(cache.join("notes.txt")).unwrap(), b"mine");
    assert_eq!(fs::read(around.join("x.parquet")).unwrap(), b"mine");
}

#[test]
fn overwriting_removes_what_the_former_writer_still_had_to_remove() {
    let (_folder, around) = around();
    let cache = around.join("cache");
    parts(&cache, &[10, 10]);
    let part = fs::read(cache.join("part-000000000.parquet")).unwrap();
    compact(&cache).unwrap();
    fs::write(cache.join("part-000000000.parquet"), part).unwrap(); // killed before it was removed
    let options = WriterOptions::default().with_overwrite(true);
    let mut writer = OutputLock::acquire(&cache).unwrap().open(identity(), DIM, options).unwrap();
    append_good(&mut writer, &states(0..3), &rows(0..3, DIM));
    writer.finish(provenance()).unwrap();
    assert_eq!(names(&cache), [MANIFEST, "part-000000003.parquet"]);
    assert_holds(&cache, 0..3);
}

#[test]
fn writers_that_come_while_another_ends_are_refused_or_admitted() {
    let (_folder, around) = around();
    let (cache, file) = (around.join("cache"), around.join("a.parquet"));
    fs::create_dir(&cache).unwrap();
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (next, output) = (&next, if thread % 2 == 0 { &cache } else { &file });
            scope.spawn(move || {
                let mut finished = 0;
                while finished < 12 {
                    let lock = match OutputLock::acquire(output) {
                        Ok(lock) => lock,
                        Err(CacheError::Locked { .. }) => {
                            thread::yield_now();
                            continue;
                        }
                        Err(error) => panic!("{error}"),
                    };
                    let options = WriterOptions::default().with_checkpoint_rows(1);
                    let mut writer = lock.open(identity(), DIM, options).unwrap();
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    append_good(&mut writer, &states(number..number + 1), &row(number, DIM));
                    writer.finish(provenance()).unwrap();
                    finished += 1;
                }
            });
        }
    });
    let rows = [&cache, &file].map(|output| EmbeddingCache::open(output).unwrap().len());
    assert_eq!(rows, [48, 48], "no row is lost");
    assert_eq!(names(&around), ["a.parquet", "cache", "deep", "link"]);
}

#[test]
fn other_files_in_the_work_folder_are_left_alone() {
    let (_folder, around) = around();
    let output = around.join("a.parquet");
    let mut writer = open(&output, DIM, 10);
    append_good(&mut writer, &states(0..10), &rows(0..10, DIM));
    let work = writer.work_folder().to_owned();
    drop(writer);
    fs::copy(work.join("part-000000000.parquet"), work.join("z.parquet")).unwrap();
    let mut writer = open(&output, DIM, 10);
    assert_eq!(writer.len(), 10);
    append_good(&mut writer, &states(10..20), &rows(10..20, DIM));
    drop(writer);
    let writer = open(&output, DIM, 10);
    assert_eq!(writer.len(), 20, "the second checkpoint took a number of its own");
    writer.finish(provenance()).unwrap();
    assert_holds(&output, 0..20);
    assert_eq!(names(&work), ["z.parquet"], "it is not ours to remove");
}

#[test]
fn an_error_says_the_system_s_words_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let error = OutputLock::acquire(path.join("deep/a.parquet")).unwrap_err();
    let mut text = error.to_string();
    assert!(matches!(&error, CacheError::Io { .. }), "{text}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert_eq!(text.matches("os error").count(), 1, "{text}");
}
