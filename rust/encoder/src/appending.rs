//! The thread that appends what a search encodes: it owns the writer, so that neither the encoder nor
//! its callers wait for a disk or a store.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::embedding::TokenDigest;
use crate::jobs::{Job, NewRow, Shared};
use ebm_cache::{CacheError, CacheResult, CacheWriter, StateKey, Verdict};

/// After a failed checkpoint the next one is tried after this time, then after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A checkpoint that failed.
struct Failed {
    again: Instant,
    pause: Duration,
}

/// What the thread holds.
pub(crate) struct Appending {
    writer: CacheWriter,
    interval: Duration,
    shared: Arc<Shared>,
    /// Embeddings that come while the writer cannot save those that it has.
    waiting: Vec<NewRow>,
    /// Bytes of the embeddings that the writer has not saved yet.
    taken: u64,
    /// When the first embedding came that is not saved yet.
    since: Option<Instant>,
    failed: Option<Failed>,
    /// A state for each token digest, by which equal embeddings are known to be legitimate.
    first_with: HashMap<TokenDigest, StateKey>,
}

impl Appending {
    /// Embeddings that no full checkpoint has saved are saved after `interval`.
    pub(crate) fn new(writer: CacheWriter, interval: Duration, shared: Arc<Shared>) -> Self {
        Self {
            writer,
            interval,
            shared,
            waiting: Vec::new(),
            taken: 0,
            since: None,
            failed: None,
            first_with: HashMap::new(),
        }
    }

    pub(crate) fn run(mut self, jobs: &flume::Receiver<Job>) {
        loop {
            let job = match self.wakes_at() {
                Some(time) => jobs.recv_deadline(time),
                None => jobs.recv().map_err(|_| flume::RecvTimeoutError::Disconnected),
            };
            match job {
                Ok(Job::Finish(provenance, reply)) => {
                    let finished = self.save().and_then(|()| self.writer.finish(provenance));
                    let _ = reply.send(finished);
                    return;
                }
                Ok(job) => self.work(job),
                Err(flume::RecvTimeoutError::Timeout) => {
                    let _ = self.save(); // which reports a failure, and tries again later
                }
                Err(flume::RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Err(error) = self.save() {
            tracing::error!(%error, "rows encoded since the last checkpoint are lost");
        }
    }

    /// When to look at the embeddings that are not saved, if nothing comes before.
    fn wakes_at(&self) -> Option<Instant> {
        match &self.failed {
            Some(failed) => Some(failed.again),
            None => self.since.and_then(|since| since.checked_add(self.interval)),
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Append(rows) => {
                self.since.get_or_insert_with(Instant::now);
                self.waiting.extend(rows);
                let paused = self.failed.as_ref().is_some_and(|f| Instant::now() < f.again);
                if !paused && let Err(error) = self.append_waiting() {
                    self.note_failure(&error);
                }
            }
            Job::Replace(state, row) => {
                let (replaced, waiting) =
                    mem::take(&mut self.waiting).into_iter().partition(|row| row.state == state);
                self.waiting = waiting;
                let replaced: Vec<NewRow> = replaced;
                let bytes = replaced.iter().map(NewRow::bytes).sum::<u64>();
                self.shared.unsaved.fetch_sub(bytes, Ordering::Relaxed);
                self.writer.retract(&state);
                self.work(Job::Append(row.into_iter().collect()));
            }
            Job::Tokens(key, digest) => self.note_tokens(key, digest),
            Job::TextOf(key, reply) => {
                let stored = self.writer.stored(key).ok().flatten();
                let _ = reply.send(stored.map(|(text, _)| text));
            }
            Job::Checkpoint(reply) => {
                let saved = self.save();
                let _ = reply.send(saved);
            }
            Job::Commit(provenance, reply) => {
                let committed = self.save().and_then(|()| self.writer.commit(provenance));
                let _ = reply.send(committed);
            }
            Job::Finish(..) => {} // ends the thread, so `run` does it
        }
    }

    /// Saves all embeddings that have come. After an error they are kept, and saved by a later try.
    fn save(&mut self) -> CacheResult<()> {
        let saved = self.append_waiting().and_then(|()| self.writer.checkpoint());
        match &saved {
            Ok(()) => {
                self.shared.unsaved.fetch_sub(mem::take(&mut self.taken), Ordering::Relaxed);
                self.since = None;
                if self.failed.take().is_some() {
                    tracing::info!("rows are saved again");
                }
            }
            Err(error) => self.note_failure(error),
        }
        saved
    }

    fn note_failure(&mut self, error: &CacheError) {
        let pause = self.failed.as_ref().map_or(FIRST_PAUSE, |failed| failed.pause * 2);
        let pause = pause.min(LONGEST_PAUSE);
        tracing::warn!(%error, again_in = ?pause, "rows could not be saved; they are kept");
        self.failed = Some(Failed { again: Instant::now() + pause, pause });
    }

    /// States with the same tokens rightly have equal embeddings.
    fn note_tokens(&mut self, key: StateKey, digest: TokenDigest) {
        let first = *self.first_with.entry(digest).or_insert(key);
        if first != key {
            self.writer.allow_equal_keys(first, key);
        }
    }

    fn append_waiting(&mut self) -> CacheResult<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        // Before the embeddings are handed over: while it fails, the writer takes none.
        self.writer.settle()?;
        let rows = mem::take(&mut self.waiting);
        for row in &rows {
            if let Some(digest) = row.embedding.prompt().digest {
                self.note_tokens(StateKey::of(&row.state), digest);
            }
        }
        self.taken += rows.iter().map(NewRow::bytes).sum::<u64>();
        let texts: Vec<&str> = rows.iter().map(|row| &*row.state).collect();
        let values: Vec<f32> = rows.iter().flat_map(|row| row.embedding.iter().copied()).collect();
        // Where this fails, the writer has the embeddings all the same: it checkpoints after taking
        // them.
        for (state, verdict) in texts.iter().zip(self.writer.append(&texts, &values)?) {
            if let Verdict::Bad(reason) = verdict {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%reason, state, "an embedding was not appended");
            }
        }
        Ok(())
    }
}
