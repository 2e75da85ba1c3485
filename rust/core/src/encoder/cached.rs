//! A cache in front of an encoder: known states cost a lookup, others are encoded once.

use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;

use super::coalescer::{Aftermath, Coalescer, CoalescerOptions, CoalescerStatistics};
use super::memory::Memory;
use super::row::{Encoded, Row};
use super::{Encoder, EncoderResult, RowReport};
use crate::cache::{
    CacheError, CacheResult, CacheWriter, EmbeddingCache, FinishReport, OutputLock, Verdict,
    WriterOptions,
};

/// Latencies are told up to this; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(3600);

/// How a [`CachedEncoder`] works.
#[derive(Debug, Clone)]
pub struct CachedEncoderOptions {
    /// How requests are merged.
    pub coalescing: CoalescerOptions,
    /// Most bytes of rows encoded at search time that are kept in memory.
    pub memory_bytes: u64,
    /// A cache, a file or a folder of parts, to which rows encoded at search time are appended,
    /// crash-safe.
    pub append_to: Option<PathBuf>,
    /// Go on though the cache was made by another encoder, or by an unknown one. Warned about.
    pub allow_other_identity: bool,
}

impl Default for CachedEncoderOptions {
    fn default() -> Self {
        Self {
            coalescing: CoalescerOptions::default(),
            memory_bytes: 1 << 30,
            append_to: None,
            allow_other_identity: false,
        }
    }
}

/// What a [`CachedEncoder`] has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CachedEncoderStatistics {
    /// Requests.
    pub requests: u64,
    /// States in them.
    pub states: u64,
    /// States found in the cache.
    pub cache_hits: u64,
    /// States found among those encoded before.
    pub memory_hits: u64,
    /// States that were neither.
    pub misses: u64,
    /// Misses that another request was waiting for already, or got in the meantime.
    pub coalesced: u64,
    /// Tokens of the prompts that were encoded.
    pub tokens: u64,
    /// What the encoder was asked.
    pub encoder: CoalescerStatistics,
    /// Median time of a request.
    pub p50: Duration,
    /// 95 % of requests took at most this.
    pub p95: Duration,
    /// 99 % of requests took at most this.
    pub p99: Duration,
}

/// A row, by reference into the cache or into what was encoded.
#[derive(Debug, Clone)]
pub enum CachedRow<'a> {
    /// From the cache.
    Stored(&'a [f32]),
    /// Encoded by this process.
    Encoded(Row),
}

impl Deref for CachedRow<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Stored(row) => row,
            Self::Encoded(row) => row,
        }
    }
}

/// One state's row, or why there is none.
pub type CachedAnswer<'a> = Result<CachedRow<'a>, RowReport>;

/// An [`EmbeddingCache`] in front of an [`Encoder`].
///
/// Equal states that several callers ask for at the same time are encoded once.
#[derive(Debug)]
pub struct CachedEncoder {
    cache: Option<Arc<EmbeddingCache>>,
    coalescer: Option<Coalescer>,
    dim: usize,
    memory: Memory,
    shared: Arc<Shared>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    states: AtomicU64,
    cache_hits: AtomicU64,
    memory_hits: AtomicU64,
    misses: AtomicU64,
}

/// What the encoder's thread shares with its callers.
#[derive(Debug)]
struct Shared {
    writer: Mutex<Option<CacheWriter>>,
    /// What is appended to.
    append_to: Option<PathBuf>,
    /// What ended the appending.
    failure: Mutex<Option<String>>,
    /// Rows that the writer has not got yet.
    backlog: Mutex<Vec<(Arc<str>, Row)>>,
    latencies: Mutex<Histogram<u64>>,
    tokens: AtomicU64,
}

impl CachedEncoder {
    /// Puts a cache, if there is one, in front of an encoder.
    ///
    /// # Errors
    /// [`CacheError::IdentityMismatch`], naming the fields in which the cache and the encoder, or
    /// the encoder and the rows in the file to append to, differ; [`CacheError::Format`] if rows have
    /// another length; [`CacheError::Locked`] if another process appends to the same file.
    pub fn new(
        encoder: impl Encoder + 'static,
        cache: Option<Arc<EmbeddingCache>>,
        options: CachedEncoderOptions,
    ) -> CacheResult<Self> {
        if let Some(cache) = &cache {
            require_same_encoder(cache, &encoder, options.allow_other_identity)?;
        }
        let dim = encoder.dim();
        let identity = encoder.identity().clone();
        let open = |path| OutputLock::acquire(path)?.open(identity, dim, WriterOptions::default());
        let writer = options.append_to.clone().map(open).transpose()?;
        let memory = Memory::new(options.memory_bytes);
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latencies = Histogram::new_with_max(longest, 3)
            .map_err(|error| CacheError::Argument(error.to_string()))?;
        let shared = Arc::new(Shared {
            append_to: options.append_to,
            failure: Mutex::default(),
            writer: Mutex::new(writer),
            backlog: Mutex::default(),
            latencies: Mutex::new(latencies),
            tokens: AtomicU64::new(0),
        });
        let after = Keep { memory: memory.clone(), shared: Arc::clone(&shared) };
        let coalescer = Coalescer::start_with(encoder, options.coalescing, after)
            .map_err(|error| CacheError::Argument(error.to_string()))?;
        let counters = Counters::default();
        Ok(Self { cache, coalescer: Some(coalescer), dim, memory, shared, counters })
    }

    /// Length of every row.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The row of a state that is known already; nothing is encoded.
    #[must_use]
    pub fn get(&self, state: &str) -> Option<CachedRow<'_>> {
        if let Some(row) = self.cache.as_ref().and_then(|cache| cache.get(state)) {
            self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Some(CachedRow::Stored(row));
        }
        let row = self.memory.get(state)?.row?;
        self.counters.memory_hits.fetch_add(1, Ordering::Relaxed);
        Some(CachedRow::Encoded(row))
    }

    /// The rows of some states, in their order; what is not known is encoded in one request.
    ///
    /// # Errors
    /// As [`super::Pending::wait`].
    pub fn encode(&self, states: &[&str]) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        self.answer(states, |coalescer, missing| coalescer.submit(missing)?.wait())
    }

    /// The same, given up after a time.
    ///
    /// # Errors
    /// As [`super::Pending::wait_for`].
    pub fn encode_within(
        &self,
        states: &[&str],
        time: Duration,
    ) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        self.answer(states, |coalescer, missing| coalescer.submit(missing)?.wait_for(time))
    }

    /// The same for a task; the runtime is not blocked.
    ///
    /// # Errors
    /// As [`Coalescer::encode`].
    pub async fn encode_async(&self, states: &[&str]) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        let start = Instant::now();
        let mut found = self.look_up(states);
        let missing = missing(states, &found);
        if let (Some(coalescer), false) = (&self.coalescer, missing.is_empty()) {
            fill(&mut found, coalescer.encode(missing).await?);
        }
        self.took(start);
        Ok(found.into_iter().flatten().collect())
    }

    fn answer(
        &self,
        states: &[&str],
        ask: impl FnOnce(&Coalescer, Vec<Arc<str>>) -> EncoderResult<Vec<Encoded>>,
    ) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        let start = Instant::now();
        let mut found = self.look_up(states);
        let missing = missing(states, &found);
        if let (Some(coalescer), false) = (&self.coalescer, missing.is_empty()) {
            fill(&mut found, ask(coalescer, missing)?);
        }
        self.took(start);
        Ok(found.into_iter().flatten().collect())
    }

    fn look_up(&self, states: &[&str]) -> Vec<Option<CachedAnswer<'_>>> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.states.fetch_add(states.len() as u64, Ordering::Relaxed);
        let found: Vec<_> = states.iter().map(|state| self.get(state).map(Ok)).collect();
        let misses = found.iter().filter(|row| row.is_none()).count() as u64;
        self.counters.misses.fetch_add(misses, Ordering::Relaxed);
        found
    }

    fn took(&self, start: Instant) {
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latencies().saturating_record(nanos);
    }

    /// What has been done so far.
    #[must_use]
    pub fn statistics(&self) -> CachedEncoderStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let encoder = self.coalescer.as_ref().map(Coalescer::statistics).unwrap_or_default();
        let latencies = self.latencies();
        let quantile = |q| Duration::from_nanos(latencies.value_at_quantile(q));
        let misses = read(&self.counters.misses);
        CachedEncoderStatistics {
            requests: read(&self.counters.requests),
            states: read(&self.counters.states),
            cache_hits: read(&self.counters.cache_hits),
            memory_hits: read(&self.counters.memory_hits),
            misses,
            coalesced: misses.saturating_sub(encoder.encoded),
            tokens: read(&self.shared.tokens),
            encoder,
            p50: quantile(0.50),
            p95: quantile(0.95),
            p99: quantile(0.99),
        }
    }

    /// Saves what was encoded since the last time; also while the encoder is at work.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub fn checkpoint(&self) -> CacheResult<()> {
        self.shared.writer()?.as_mut().map_or(Ok(()), CacheWriter::checkpoint)
    }

    /// Shows the rows that were appended so far to readers of the output, which must be a folder.
    ///
    /// Returns the rows that it has; `None` where nothing is appended to.
    ///
    /// # Errors
    /// As for [`CacheWriter::commit`].
    pub fn commit(&self, provenance: Value) -> CacheResult<Option<u64>> {
        self.shared.writer()?.as_mut().map(|writer| writer.commit(provenance)).transpose()
    }

    /// Ends the encoder, and writes what was encoded into the file to append to.
    ///
    /// # Errors
    /// Whatever keeps the file from being written; what was checkpointed is not lost.
    pub fn finish(mut self, provenance: Value) -> CacheResult<Option<FinishReport>> {
        self.end();
        let writer = self.shared.writer()?.take();
        writer.map(|writer| writer.finish(provenance)).transpose()
    }

    /// Waits for the encoder's thread, and tells once what has been done.
    fn end(&mut self) {
        if self.coalescer.is_none() {
            return;
        }
        let s = self.statistics();
        tracing::info!(
            requests = s.requests,
            states = s.states,
            cache_hits = s.cache_hits,
            memory_hits = s.memory_hits,
            coalesced = s.coalesced,
            batches = s.encoder.calls,
            tokens = s.tokens,
            p50 = ?s.p50,
            p95 = ?s.p95,
            p99 = ?s.p99,
            "cached encoder"
        );
        self.coalescer = None;
    }

    fn latencies(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.shared.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CachedEncoder {
    /// Saves what was encoded; the next one that appends to the same file takes it up.
    fn drop(&mut self) {
        self.end();
        let saved = self
            .shared
            .writer()
            .and_then(|mut writer| writer.take().map_or(Ok(()), |mut writer| writer.checkpoint()));
        if let Err(error) = saved {
            tracing::error!(%error, "rows encoded since the last checkpoint are lost");
        }
    }
}

impl Shared {
    /// The writer, with all rows that were encoded so far; an error if one ended the appending.
    fn writer(&self) -> CacheResult<MutexGuard<'_, Option<CacheWriter>>> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.append_backlog(&mut writer);
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match failure.zip(self.append_to.clone()) {
            Some((detail, path)) => {
                let error = io::Error::other(detail);
                Err(CacheError::Io { path, action: "append more rows", error })
            }
            None => Ok(writer),
        }
    }

    fn backlog(&self) -> MutexGuard<'_, Vec<(Arc<str>, Row)>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append_backlog(&self, writer: &mut Option<CacheWriter>) {
        let rows = std::mem::take(&mut *self.backlog());
        let Some(open) = writer.as_mut().filter(|_| !rows.is_empty()) else { return };
        let texts: Vec<&str> = rows.iter().map(|(state, _)| &**state).collect();
        let values: Vec<f32> = rows.iter().flat_map(|(_, row)| row.iter().copied()).collect();
        match open.append(&texts, &values) {
            Ok(verdicts) => {
                for (state, verdict) in texts.iter().zip(verdicts) {
                    if let Verdict::Bad(reason) = verdict {
                        tracing::warn!(%reason, state, "a row was not appended");
                    }
                }
            }
            Err(error) => {
                // The search goes on; what is checkpointed is kept.
                tracing::error!(%error, "no more rows are appended");
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(error.to_string());
                *writer = None;
            }
        }
    }
}

/// What is done with rows when they have been encoded.
struct Keep {
    memory: Memory,
    shared: Arc<Shared>,
}

impl Aftermath for Keep {
    fn known(&self, state: &str) -> Option<Encoded> {
        self.memory.get(state)
    }

    fn encoded(&mut self, states: &[Arc<str>], answers: &[Encoded]) {
        for (state, answer) in states.iter().zip(answers) {
            self.memory.insert(state, answer);
            if let RowReport::Ok { tokens, .. } = answer.report {
                self.shared.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
            }
        }
        if self.shared.append_to.is_some() {
            let rows = states.iter().zip(answers);
            let good =
                rows.filter_map(|(state, answer)| Some((state.clone(), answer.row.clone()?)));
            self.shared.backlog().extend(good);
        }
    }

    fn answered(&mut self) {
        // Whoever has the writer now may have it for long; the rows wait, not those who encode.
        if let Ok(mut writer) = self.shared.writer.try_lock() {
            self.shared.append_backlog(&mut writer);
        }
    }
}

fn require_same_encoder(
    cache: &EmbeddingCache,
    encoder: &impl Encoder,
    allow_other: bool,
) -> CacheResult<()> {
    match cache.require_identity(encoder.identity(), "the encoder") {
        Err(error @ CacheError::IdentityMismatch { .. }) if allow_other => {
            tracing::warn!(%error, "going on with rows of different encoders, as asked");
        }
        other => other?,
    }
    if cache.dim() == encoder.dim() || cache.is_empty() {
        return Ok(());
    }
    Err(CacheError::Argument(format!(
        "{}: rows have {} values, the encoder's {}",
        cache.path().display(),
        cache.dim(),
        encoder.dim()
    )))
}

fn missing(states: &[&str], found: &[Option<CachedAnswer<'_>>]) -> Vec<Arc<str>> {
    let unknown = states.iter().zip(found).filter(|(_, row)| row.is_none());
    unknown.map(|(state, _)| Arc::from(*state)).collect()
}

/// Puts answers where there were none, in order.
fn fill(found: &mut [Option<CachedAnswer<'_>>], answers: Vec<Encoded>) {
    let open = found.iter_mut().filter(|row| row.is_none());
    for (place, answer) in open.zip(answers) {
        *place = Some(answer.into_row().map(CachedRow::Encoded));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{CachedEncoder, CachedEncoderOptions};
    use crate::cache::{EmbeddingCache, Identity};
    use crate::encoder::FakeEncoder;

    fn appending_to(path: &std::path::Path) -> CachedEncoder {
        let identity: Identity = serde_json::from_value(serde_json::json!({
            "weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
            "special_tokens": "none", "pooling": "mean", "layer": -1, "dtype": "float32",
            "quantization": "none", "max_length": null, "truncation": "none",
        }))
        .unwrap();
        let append_to = Some(path.to_owned());
        let options = CachedEncoderOptions { append_to, ..CachedEncoderOptions::default() };
        CachedEncoder::new(FakeEncoder::new(8, identity).unwrap(), None, options).unwrap()
    }

    #[test]
    fn a_writer_at_work_keeps_no_caller_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("search.parquet");
        let encoder = appending_to(&path);
        let at_work = encoder.shared.writer.lock().unwrap();
        let answers = encoder.encode(&["a", "b"]).unwrap();
        assert!(answers.iter().all(Result::is_ok));
        assert!(at_work.as_ref().unwrap().is_empty(), "the rows wait");
        drop((at_work, answers));
        encoder.checkpoint().unwrap();
        assert_eq!(encoder.shared.writer().unwrap().as_ref().unwrap().len(), 2);
        encoder.finish(Value::Null).unwrap();
        assert_eq!(EmbeddingCache::open(&path).unwrap().len(), 2);
    }

    #[test]
    fn what_ended_the_appending_is_told_to_whoever_relies_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("search.parquet");
        let encoder = appending_to(&path);
        std::fs::remove_dir_all(folder.path()).unwrap();
        let states: Vec<String> = (0..2100).map(|i| format!("state {i}")).collect();
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        let answers = encoder.encode(&states).unwrap();
        assert!(answers.iter().all(Result::is_ok), "the search goes on");
        drop(answers);
        for _ in 0..2 {
            let error = encoder.checkpoint().unwrap_err().to_string();
            assert!(error.contains("search.parquet: cannot append more rows"), "{error}");
        }
        encoder.finish(Value::Null).unwrap_err();
    }
}
