//! A crash-safe writer of trajectory files.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use ebm_cache::{CacheError, OutputLock, guard, storage};

use super::rows::{rows_of, trajectory_schema};
use super::summary::{FileSummary, KEY, TheoremSummary};
use crate::recorded::TrajectoryError;
use crate::search::SearchResult;

/// Finished searches are written at most this often.
const FLUSH: Duration = Duration::from_secs(1);
/// Shards that are merged into one, so that a long run does not leave thousands.
const MERGE: usize = 64;
/// How the names of shards begin.
const SHARD: &str = "searches-";

/// What to do with an output that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Refuse it.
    Refuse,
    /// Add to it; theorems in it are not searched again.
    Resume,
    /// Replace it.
    Overwrite,
}

/// A finished search.
#[derive(Debug, Clone)]
struct Finished {
    summary: TheoremSummary,
    rows: RecordBatch,
}

/// Writes searches to a trajectory file, each once it is complete.
///
/// Finished searches are flushed about once a second to shards in `OUTPUT.partial/`, which is locked; the
/// end merges them, sorted, into the output. The output is the former one or a complete one at any time.
///
/// The writer starts no thread: [`flush_if_due`](Self::flush_if_due) is to be called also while
/// no search ends. Then a process that dies loses the searches of the last second.
#[derive(Debug)]
pub struct TrajectoryWriter {
    lock: OutputLock,
    folder: PathBuf,
    settings: Value,
    /// Files whose rows are part of the output to be.
    sources: Vec<PathBuf>,
    known: BTreeMap<String, TheoremSummary>,
    waiting: Vec<Finished>,
    next: u64,
    flushed: Instant,
}

impl TrajectoryWriter {
    /// Opens an output on this machine. `settings` say how the searches are done, as a JSON object; searches
    /// with other settings are not put into one file.
    ///
    /// # Errors
    /// [`TrajectoryError::Exists`], [`TrajectoryError::OtherSettings`]; with [`CacheError::Locked`] if
    /// another process writes there; and what keeps the existing output from being read.
    pub fn open(
        output: impl AsRef<Path>,
        settings: Value,
        existing: Existing,
    ) -> Result<Self, TrajectoryError> {
        let output = output.as_ref();
        if storage::is_remote(output)? {
            let reason = "is a URL; searches are written to this machine\nhint: write to a file, and \
                          copy it when the search has ended";
            return Err(TrajectoryError::Format {
                path: output.to_owned(),
                reason: reason.to_owned(),
            });
        }
        if output.is_dir() {
            let reason = "is a folder; the searches are written to one Parquet file";
            return Err(TrajectoryError::Format {
                path: output.to_owned(),
                reason: reason.to_owned(),
            });
        }
        let lock = OutputLock::acquire(output)?;
        let mut folder = OsString::from(lock.output());
        folder.push(".partial");
        let mut writer = Self {
            folder: folder.into(),
            settings,
            sources: Vec::new(),
            known: BTreeMap::new(),
            waiting: Vec::new(),
            next: 0,
            flushed: Instant::now(),
            lock,
        };
        writer.take_up(existing)?;
        Ok(writer)
    }

    /// Finds what earlier runs left.
    fn take_up(&mut self, existing: Existing) -> Result<(), TrajectoryError> {
        let mut found = Vec::new();
        if self.lock.output().exists() {
            found.push(self.lock.output().to_owned());
        }
        let shards = storage::list(&self.folder, "parquet")?;
        let number = |shard: &Path| -> Option<u64> {
            shard.file_stem()?.to_str()?.strip_prefix(SHARD)?.parse().ok()
        };
        let shards: Vec<PathBuf> =
            shards.into_iter().filter(|shard| number(shard).is_some()).collect();
        self.next = shards.iter().filter_map(|shard| number(shard)).max().map_or(0, |n| n + 1);
        found.extend(shards);
        match existing {
            Existing::Refuse if !found.is_empty() => {
                return Err(TrajectoryError::Exists { path: self.lock.output().to_owned() });
            }
            Existing::Overwrite => {
                // The former output stays until it is replaced.
                found
                    .iter()
                    .filter(|file| *file != self.lock.output())
                    .try_for_each(|shard| storage::remove_file(shard))?;
                return Ok(());
            }
            Existing::Refuse | Existing::Resume => {}
        }
        for file in found {
            let Some(summary) = FileSummary::read(&file)? else {
                let reason = "is no trajectory file of a search of this software\nhint: write to another \
                              output";
                return Err(TrajectoryError::Format { path: file, reason: reason.to_owned() });
            };
            let differences = differences(&summary.settings, &self.settings);
            if !differences.is_empty() {
                let path = self.lock.output().to_owned();
                return Err(TrajectoryError::OtherSettings { path, differences });
            }
            for theorem in summary.theorems {
                self.known.entry(theorem.theorem.clone()).or_insert(theorem);
            }
            self.sources.push(file);
        }
        Ok(())
    }

    /// The finished searches, by theorem: those of earlier runs, and those that were added.
    #[must_use]
    pub fn finished(&self) -> &BTreeMap<String, TheoremSummary> {
        &self.known
    }

    /// The output's one name.
    #[must_use]
    pub fn output(&self) -> &Path {
        self.lock.output()
    }

    /// Adds a complete search, unless its theorem is there; one that is not complete is not written.
    ///
    /// # Errors
    /// [`TrajectoryError`], if the disk does not take it.
    pub fn add(&mut self, search: &SearchResult) -> Result<(), TrajectoryError> {
        if !search.ended.is_complete() || self.known.contains_key(&search.theorem) {
            return Ok(());
        }
        let rows = rows_of(search).map_err(|error| self.wrong(&error))?;
        let summary = TheoremSummary::of(search, rows.num_rows());
        self.known.insert(search.theorem.clone(), summary.clone());
        self.waiting.push(Finished { summary, rows });
        self.flush_if_due()
    }

    /// Writes what was added to the disk, if that was not done for a second.
    ///
    /// # Errors
    /// [`TrajectoryError`], if the disk does not take it; it is kept for the next attempt.
    pub fn flush_if_due(&mut self) -> Result<(), TrajectoryError> {
        if self.flushed.elapsed() >= FLUSH { self.flush() } else { Ok(()) }
    }

    /// Writes what was added to the disk.
    ///
    /// # Errors
    /// [`TrajectoryError`], if the disk does not take it; it is kept for the next attempt.
    pub fn flush(&mut self) -> Result<(), TrajectoryError> {
        self.flushed = Instant::now();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let bytes = self.encode(&self.waiting)?;
        let shard = self.write_shard(&bytes)?;
        self.sources.push(shard);
        self.waiting.clear();
        let shards = self.shards();
        if shards.len() < MERGE {
            return Ok(());
        }
        let bytes = self.encode(&read_all(&shards)?)?;
        let shard = self.write_shard(&bytes)?;
        // Were it to die in between, a theorem would be in two shards, and counted once.
        shards.iter().try_for_each(|shard| storage::remove_file(shard))?;
        self.sources.retain(|source| !shards.contains(source));
        self.sources.push(shard);
        Ok(())
    }

    /// Merges everything into the output: theorems in the given order, others before them in the order in
    /// which they were found. Returns the number of rows.
    ///
    /// # Errors
    /// [`TrajectoryError`], if the disk does not take it; then the shards are still there, to be resumed.
    pub fn finish(mut self, order: &[String]) -> Result<u64, TrajectoryError> {
        self.flush()?;
        let places: HashMap<&str, usize> =
            order.iter().enumerate().map(|(place, name)| (name.as_str(), place + 1)).collect();
        let mut all = read_all(&self.sources)?;
        all.sort_by_key(|one| places.get(one.summary.theorem.as_str()).copied().unwrap_or(0));
        let bytes = self.encode(&all)?;
        storage::write_file(self.lock.output(), &bytes)?;
        self.shards().iter().try_for_each(|shard| storage::remove_file(shard))?;
        Ok(all.iter().map(|one| one.summary.rows).sum())
    }

    fn shards(&self) -> Vec<PathBuf> {
        let shards = self.sources.iter().filter(|source| *source != self.lock.output());
        shards.cloned().collect()
    }

    fn write_shard(&mut self, bytes: &[u8]) -> Result<PathBuf, TrajectoryError> {
        let path = self.folder.join(format!("{SHARD}{:09}.parquet", self.next));
        storage::write_file(&path, bytes)?;
        self.next += 1;
        Ok(path)
    }

    fn encode(&self, searches: &[Finished]) -> Result<Vec<u8>, TrajectoryError> {
        let theorems = searches.iter().map(|one| one.summary.clone()).collect();
        let summary = FileSummary::new(self.settings.clone(), theorems);
        let json = serde_json::to_string(&summary).map_err(|error| self.wrong(&error))?;
        let level = ZstdLevel::try_new(3).map_err(|error| self.wrong(&error))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_key_value_metadata(Some(vec![KeyValue::new(KEY.to_owned(), json)]))
            .build();
        let encode = || -> Result<Vec<u8>, ParquetError> {
            let mut writer =
                ArrowWriter::try_new(Vec::new(), trajectory_schema(), Some(properties))?;
            searches.iter().try_for_each(|one| writer.write(&one.rows))?;
            writer.into_inner()
        };
        encode().map_err(|error| self.wrong(&error))
    }

    fn wrong(&self, error: &dyn std::error::Error) -> TrajectoryError {
        let path = self.lock.output().to_owned();
        TrajectoryError::Format { path, reason: error.to_string() }
    }
}

/// The searches of files, each theorem once, as the first of them has it.
fn read_all(files: &[PathBuf]) -> Result<Vec<Finished>, TrajectoryError> {
    let mut all: Vec<Finished> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for file in files {
        let finished = read_searches_of(file)?;
        all.extend(finished.into_iter().filter(|one| seen.insert(one.summary.theorem.clone())));
    }
    Ok(all)
}

fn read_searches_of(path: &Path) -> Result<Vec<Finished>, TrajectoryError> {
    let wrong = |reason: String| TrajectoryError::Format { path: path.to_owned(), reason };
    let summary = FileSummary::read(path)?;
    let summary = summary.ok_or_else(|| wrong(format!("has no metadata {KEY:?}")))?;
    let bytes = storage::read_file(path)?;
    let bytes = bytes.ok_or_else(|| wrong("is gone".to_owned()))?;
    let rows = guard(path, || {
        let read = || -> Result<RecordBatch, ArrowError> {
            let builder = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes))?;
            let schema = Arc::clone(builder.schema());
            let batches: Vec<RecordBatch> = builder.build()?.collect::<Result<_, _>>()?;
            arrow_select::concat::concat_batches(&schema, &batches)
        };
        read().map_err(|error| CacheError::Format {
            path: path.to_owned(),
            detail: format!("damaged: {error}"),
        })
    })?;
    let mut first = 0;
    let mut searches = Vec::with_capacity(summary.theorems.len());
    for summary in summary.theorems {
        let count = usize::try_from(summary.rows).unwrap_or(usize::MAX);
        if rows.num_rows() - first < count {
            return Err(wrong("has fewer rows than its metadata says".to_owned()));
        }
        searches.push(Finished { rows: rows.slice(first, count), summary });
        first += count;
    }
    if first != rows.num_rows() {
        return Err(wrong("has more rows than its metadata says".to_owned()));
    }
    Ok(searches)
}

/// The keys of two JSON objects with different values.
fn differences(there: &Value, here: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let (there, here) = (there.as_object().unwrap_or(&empty), here.as_object().unwrap_or(&empty));
    let keys: std::collections::BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let shown =
        |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    keys.into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| format!("{key} was {}, is {}", shown(there.get(key)), shown(here.get(key))))
        .collect()
}
