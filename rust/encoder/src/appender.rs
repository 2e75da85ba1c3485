//! Appending what a search encodes to a cache: the ways to the thread that does it.

use std::io;
use std::mem;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::appending::Appending;
use crate::embedding::{Answer, TokenDigest};
use crate::jobs::{Job, NewRow, Reply, Shared};
use ebm_cache::{CacheError, CacheResult, CacheWriter, FinishReport, StateKey};

/// Embeddings that are not saved yet may take this much memory; a writer that fails for longer
/// loses more recent ones, which is counted and reported.
const UNSAVED_BYTES: u64 = 1 << 30;
/// How long a text is waited for that only the writer has; it may be busy with a store.
const TEXT_WAIT: Duration = Duration::from_secs(5);

/// Takes embeddings to be appended, without waiting.
#[derive(Clone)]
pub(crate) struct RowSink {
    jobs: flume::Sender<Job>,
    shared: Arc<Shared>,
}

impl RowSink {
    pub(crate) fn append(&self, states: &[Arc<str>], answers: &[Answer]) {
        let rows = states.iter().zip(answers).filter_map(|(s, answer)| NewRow::of(s, answer));
        let rows: Vec<NewRow> = rows.collect();
        if rows.is_empty() {
            return;
        }
        let bytes: u64 = rows.iter().map(NewRow::bytes).sum();
        if self.shared.unsaved.fetch_add(bytes, Ordering::Relaxed) > UNSAVED_BYTES {
            self.shared.unsaved.fetch_sub(bytes, Ordering::Relaxed);
            let before = self.shared.dropped.fetch_add(rows.len() as u64, Ordering::Relaxed);
            if before == 0 {
                tracing::error!(
                    "rows are not kept for appending any more: 1 GiB of them could not be saved"
                );
            }
            return;
        }
        self.send(Job::Append(rows));
    }

    pub(crate) fn replace(&self, state: &Arc<str>, answer: Option<&Answer>) {
        let row = answer.and_then(|answer| NewRow::of(state, answer));
        let bytes = row.as_ref().map_or(0, NewRow::bytes);
        self.shared.unsaved.fetch_add(bytes, Ordering::Relaxed);
        self.send(Job::Replace(Arc::clone(state), row));
    }

    /// Notes the tokens of a state whose embedding is in the output already.
    pub(crate) fn note_tokens(&self, key: StateKey, digest: TokenDigest) {
        self.send(Job::Tokens(key, digest));
    }

    pub(crate) fn text_of(&self, key: StateKey) -> Option<Arc<str>> {
        let (reply, text) = flume::bounded(1);
        self.send(Job::TextOf(key, reply));
        text.recv_timeout(TEXT_WAIT).ok().flatten().map(Arc::from)
    }

    fn send(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            // It ends early by a panic only; whoever relies on it gets an error.
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread that appends.
#[derive(Debug)]
pub(crate) struct Appender {
    jobs: Option<flume::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    output: PathBuf,
    process: u32,
}

impl Appender {
    /// Starts the thread. Embeddings that were not saved by a full checkpoint are saved after
    /// `interval`.
    pub(crate) fn start(
        writer: CacheWriter,
        output: PathBuf,
        interval: Duration,
    ) -> CacheResult<Self> {
        let (jobs, incoming) = flume::unbounded();
        let shared = Arc::new(Shared::default());
        let appending = Appending::new(writer, interval, Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("ebm-encode-append".to_owned())
            .spawn(move || appending.run(&incoming))
            .map_err(|error| CacheError::Argument(format!("cannot start a thread: {error}")))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Self { jobs, thread, shared, output, process: process::id() })
    }

    pub(crate) fn sink(&self) -> Option<RowSink> {
        let jobs = self.jobs.clone()?;
        Some(RowSink { jobs, shared: Arc::clone(&self.shared) })
    }

    /// Embeddings that were encoded and will not be in the output.
    pub(crate) fn not_appended(&self) -> u64 {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        read(&self.shared.dropped) + read(&self.shared.refused)
    }

    pub(crate) fn checkpoint(&self) -> CacheResult<()> {
        self.request(Job::Checkpoint)?;
        match self.shared.dropped.load(Ordering::Relaxed) {
            0 => Ok(()),
            dropped => Err(self.failed(format!(
                "{dropped} rows were not kept while earlier ones could not be saved; what could be \
                 kept is saved now\nhint: the states without a row are encoded again when they are \
                 asked for in the next search"
            ))),
        }
    }

    pub(crate) fn commit(&self, provenance: Value) -> CacheResult<u64> {
        self.request(|reply| Job::Commit(provenance, reply))
    }

    pub(crate) fn finish(mut self, provenance: Value) -> CacheResult<FinishReport> {
        let report = self.request(|reply| Job::Finish(provenance, reply));
        self.end();
        report
    }

    fn request<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> CacheResult<T> {
        let ended = || self.failed("the thread that appends has ended".to_owned());
        if self.process != process::id() {
            return Err(self.failed(
                "the thread that appends stayed in the process that this one was forked from"
                    .to_owned(),
            ));
        }
        let (reply, answer) = flume::bounded(1);
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job(reply)).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }

    fn failed(&self, detail: String) -> CacheError {
        let error = io::Error::other(detail);
        CacheError::Io { path: self.output.clone(), action: "append more rows", error }
    }

    fn end(&mut self) {
        if self.process != process::id() {
            // The thread, the file and its lock are the other process's.
            mem::forget((self.jobs.take(), self.thread.take()));
            return;
        }
        self.jobs = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that appends rows ended by a panic");
        }
    }
}

impl Drop for Appender {
    /// Saves what was encoded; the next one that appends to the same output resumes from it.
    fn drop(&mut self) {
        self.end();
    }
}
