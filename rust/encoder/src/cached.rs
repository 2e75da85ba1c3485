//! A cache in front of an encoder: known states cost a lookup, others are encoded once.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::appender::Appender;
use crate::checks::SearchChecks;
use crate::coalescer::Coalescer;
use crate::embedding::{Answer, Embedding, NoEmbedding, PromptInfo};
use crate::keep::{Encodings, Keep};
use crate::memory::Memory;
use crate::options::CachedEncoderOptions;
use crate::statistics::{CachedEncoderStatistics, Requests, read};
use crate::wait::Patience;
use crate::{Encoder, EncoderError, EncoderResult};
use ebm_cache::{
    Cache, CacheError, CacheResult, CacheWriter, FinishReport, Identity, OutputLock, WriterOptions,
};

/// An embedding: of the cache, or encoded by this process. It lends its values as a slice.
#[derive(Debug, Clone)]
pub enum CachedEmbedding<'a> {
    /// By reference into a cache in memory.
    Stored(&'a [f32]),
    /// Copied out of a mapped cache.
    Copied(Box<[f32]>),
    /// Encoded by this process.
    Encoded(Embedding),
}

impl Deref for CachedEmbedding<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Stored(values) => values,
            Self::Copied(values) => values,
            Self::Encoded(embedding) => embedding,
        }
    }
}

impl AsRef<[f32]> for CachedEmbedding<'_> {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl PartialEq for CachedEmbedding<'_> {
    /// Compares the values.
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl CachedEmbedding<'_> {
    /// What is known of the prompt; a cache does not record it.
    #[must_use]
    pub const fn prompt(&self) -> Option<&PromptInfo> {
        match self {
            Self::Stored(_) | Self::Copied(_) => None,
            Self::Encoded(embedding) => Some(embedding.prompt()),
        }
    }
}

/// One state's embedding, or why there is none.
pub type CachedAnswer<'a> = Result<CachedEmbedding<'a>, NoEmbedding>;

/// A [`Cache`] in front of an [`Encoder`].
///
/// Equal states that several callers ask for at the same time are encoded once. Every encoded
/// embedding passes the row checks before it is handed out, kept or appended: against itself,
/// against the embeddings of the cache in front and of the output that is appended to, and against
/// those that were encoded before. The checks take about 200 bytes for each of the last million
/// embeddings, and 300 for each embedding of the cache in front. A mapped cache is read once when
/// the encoder is made, to be checked, and once more at the first miss.
#[derive(Debug)]
pub struct CachedEncoder {
    cache: Option<Cache>,
    coalescer: Option<Coalescer>,
    appender: Option<Appender>,
    dim: usize,
    identity: Identity,
    memory: Memory,
    requests: Requests,
    encodings: Arc<Encodings>,
    /// Whether it was said that stored embeddings cannot be read any more.
    warned: AtomicBool,
}

impl CachedEncoder {
    /// Puts a cache, if there is one, in front of an encoder.
    ///
    /// # Errors
    /// [`CacheError::IdentityMismatch`], listing the fields in which the cache and the encoder, or
    /// the encoder and the embeddings in the file to append to, differ; [`CacheError::Format`] if
    /// embeddings have another length; [`CacheError::Locked`] if another process appends to the
    /// same file; and what [`MappedCache::check_all`](ebm_cache::MappedCache::check_all) finds in a
    /// mapped cache.
    pub fn new(
        encoder: impl Encoder + 'static,
        cache: Option<Cache>,
        options: CachedEncoderOptions,
    ) -> CacheResult<Self> {
        let CachedEncoderOptions {
            coalescing,
            memory_bytes,
            append_to,
            checkpoint_interval,
            allow_other_identity,
        } = options;
        let argument = |error: String| CacheError::Argument(error);
        let mut front = None;
        if let Some(cache) = &cache {
            require_same_encoder(cache, &encoder, allow_other_identity)?;
            if let Cache::Mapped(mapped) = cache {
                mapped.check_all()?; // what is served has passed the same checks as what is encoded
            }
            // Embeddings of a different encoder are served, as asked; they say nothing about this
            // one's.
            front = (cache.identity() == Some(encoder.identity())).then(|| cache.clone());
        }
        let (dim, identity) = (encoder.dim(), encoder.identity().clone());
        let (mut known, mut appender) = (None, None);
        if let Some(output) = append_to {
            let writer = open_writer(&output, &encoder, checkpoint_interval)?;
            known = Some(writer.row_checker());
            appender = Some(Appender::start(writer, output, checkpoint_interval)?);
        }
        let checks = SearchChecks::beside(dim, front, known);
        let memory = Memory::new(memory_bytes);
        let encodings = Arc::new(Encodings::default());
        let keep = Keep {
            memory: memory.clone(),
            appended: appender.as_ref().and_then(Appender::sink),
            encodings: Arc::clone(&encodings),
        };
        let coalescer = Coalescer::start_with(Arc::new(encoder), coalescing, checks, Some(keep))
            .map_err(|error| argument(error.to_string()))?;
        let requests = Requests::new().map_err(|error| argument(error.to_string()))?;
        let coalescer = Some(coalescer);
        let warned = AtomicBool::new(false);
        Ok(Self { cache, coalescer, appender, dim, identity, memory, requests, encodings, warned })
    }

    /// Length of every embedding.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The identity of the encoder.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cache in front, if there is one.
    #[must_use]
    pub const fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// The embedding of a state that is known already; nothing is encoded.
    #[must_use]
    pub fn get(&self, state: &str) -> Option<CachedEmbedding<'_>> {
        if let Some(embedding) = self.stored(state) {
            self.requests.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Some(embedding);
        }
        let embedding = self.memory.get(state)?;
        self.requests.memory_hits.fetch_add(1, Ordering::Relaxed);
        Some(CachedEmbedding::Encoded(embedding))
    }

    /// The embedding that the cache in front has. One that cannot be read is encoded again.
    fn stored(&self, state: &str) -> Option<CachedEmbedding<'_>> {
        match self.cache.as_ref()?.get(state) {
            Ok(Some(Cow::Borrowed(values))) => Some(CachedEmbedding::Stored(values)),
            Ok(Some(Cow::Owned(values))) => Some(CachedEmbedding::Copied(values.into())),
            Ok(None) => None,
            Err(error) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "stored embeddings are not used; states are encoded");
                }
                None
            }
        }
    }

    /// The embeddings of some states, in their order; what is not known is encoded in one request.
    ///
    /// # Errors
    /// [`EncoderError::Closed`] if the encoder's thread has ended; [`EncoderError::Forked`] if it
    /// stayed in another process.
    pub fn encode(&self, states: &[&str]) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        self.encode_with(states, |_| Patience::without_end())
    }

    /// The same with a time limit, in which the wait for room in the queue is included.
    ///
    /// # Errors
    /// [`EncoderError::TimedOut`], and those of [`CachedEncoder::encode`].
    pub fn encode_within(
        &self,
        states: &[&str],
        time: Duration,
    ) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        self.encode_with(states, |start| Patience::within(start, Some(time)))
    }

    /// The same, also ended as soon as `stop` returns true. It is called about ten times a second
    /// while there is no answer, on this thread.
    ///
    /// # Errors
    /// [`EncoderError::Interrupted`], and those of [`CachedEncoder::encode_within`].
    pub fn encode_unless(
        &self,
        states: &[&str],
        time: Option<Duration>,
        stop: &mut (dyn FnMut() -> bool + Send),
    ) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        self.encode_with(states, |start| Patience::within(start, time).stopped_by(stop))
    }

    /// The same for a task; the runtime is not blocked.
    ///
    /// # Errors
    /// As [`CachedEncoder::encode`].
    pub async fn encode_async(&self, states: &[&str]) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        let start = Instant::now();
        let found = self.look_up(states);
        let missing = missing(states, &found);
        let answers =
            if missing.is_empty() { Vec::new() } else { self.coalescer()?.encode(missing).await? };
        self.requests.took(start);
        complete(found, answers)
    }

    fn encode_with<'p>(
        &self,
        states: &[&str],
        patience: impl FnOnce(Instant) -> Patience<'p>,
    ) -> EncoderResult<Vec<CachedAnswer<'_>>> {
        let start = Instant::now();
        let found = self.look_up(states);
        let missing = missing(states, &found);
        let answers = if missing.is_empty() {
            Vec::new()
        } else {
            self.coalescer()?.ask(missing, &mut patience(start))?
        };
        self.requests.took(start);
        complete(found, answers)
    }

    fn coalescer(&self) -> EncoderResult<&Coalescer> {
        self.coalescer.as_ref().ok_or(EncoderError::Closed)
    }

    fn look_up(&self, states: &[&str]) -> Vec<Option<CachedAnswer<'_>>> {
        self.requests.count.fetch_add(1, Ordering::Relaxed);
        self.requests.states.fetch_add(states.len() as u64, Ordering::Relaxed);
        let found: Vec<_> = states.iter().map(|state| self.get(state).map(Ok)).collect();
        let misses = found.iter().filter(|row| row.is_none()).count() as u64;
        self.requests.misses.fetch_add(misses, Ordering::Relaxed);
        found
    }

    /// What has been done so far.
    #[must_use]
    pub fn statistics(&self) -> CachedEncoderStatistics {
        let encoder = self.coalescer.as_ref().map(Coalescer::statistics).unwrap_or_default();
        let [p50, p95, p99] = self.requests.latency();
        let misses = read(&self.requests.misses);
        CachedEncoderStatistics {
            requests: read(&self.requests.count),
            states: read(&self.requests.states),
            cache_hits: read(&self.requests.cache_hits),
            memory_hits: read(&self.requests.memory_hits),
            misses,
            coalesced: misses.saturating_sub(encoder.encoded),
            tokens: read(&self.encodings.tokens),
            truncated: read(&self.encodings.truncated),
            not_appended: self.appender.as_ref().map_or(0, Appender::not_appended),
            encoder,
            p50,
            p95,
            p99,
        }
    }

    /// Saves what was encoded since the last time; also while the encoder is at work.
    ///
    /// # Errors
    /// Whatever keeps it from being written. The embeddings are kept, and the next checkpoint,
    /// which comes by itself, tries again.
    pub fn checkpoint(&self) -> CacheResult<()> {
        self.appender.as_ref().map_or(Ok(()), Appender::checkpoint)
    }

    /// Shows the embeddings that were appended so far to readers of the output, which must be a
    /// folder.
    ///
    /// Returns the number of its rows; `None` where nothing is appended to.
    ///
    /// # Errors
    /// As for [`CacheWriter::commit`].
    pub fn commit(&self, provenance: Value) -> CacheResult<Option<u64>> {
        self.appender.as_ref().map(|appender| appender.commit(provenance)).transpose()
    }

    /// Ends the encoder, and writes what was encoded into the file to append to.
    ///
    /// # Errors
    /// Whatever keeps the file from being written; what was checkpointed is not lost.
    pub fn finish(mut self, provenance: Value) -> CacheResult<Option<FinishReport>> {
        self.end();
        self.appender.take().map(|appender| appender.finish(provenance)).transpose()
    }

    /// Waits for the encoder's thread, and logs once what has been done.
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
            bad = s.encoder.bad,
            tokens = s.tokens,
            truncated = s.truncated,
            not_appended = s.not_appended,
            p50 = ?s.p50,
            p95 = ?s.p95,
            p99 = ?s.p99,
            "cached encoder"
        );
        self.coalescer = None;
    }
}

impl Drop for CachedEncoder {
    /// Ends the encoder, and then the appender, which saves what was encoded; the next one that
    /// appends to the same output resumes from it.
    fn drop(&mut self) {
        self.end();
    }
}

fn open_writer(
    output: &Path,
    encoder: &impl Encoder,
    interval: Duration,
) -> CacheResult<CacheWriter> {
    let options = WriterOptions::default().with_checkpoint_interval(interval);
    OutputLock::acquire(output)?.open(encoder.identity().clone(), encoder.dim(), options)
}

fn require_same_encoder(
    cache: &Cache,
    encoder: &impl Encoder,
    allow_other: bool,
) -> CacheResult<()> {
    match cache.require_identity(encoder.identity(), "the encoder") {
        Err(error @ CacheError::IdentityMismatch { .. }) if allow_other => {
            tracing::warn!(%error, "embeddings of different encoders are mixed, as asked");
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

/// Puts answers where there were none, in order. There must be one for each such place: a missing
/// answer would shift all embeddings behind it.
fn complete(
    found: Vec<Option<CachedAnswer<'_>>>,
    answers: Vec<Answer>,
) -> EncoderResult<Vec<CachedAnswer<'_>>> {
    let mut answers = answers.into_iter();
    let mut next = || answers.next().map(|answer| answer.map(CachedEmbedding::Encoded));
    let all = found.into_iter().map(|known| known.or_else(&mut next)).collect::<Option<Vec<_>>>();
    match (all, answers.next()) {
        (Some(all), None) => Ok(all),
        _ => Err(EncoderError::missing_answer()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_answer_shifts_no_row() {
        let stored: &[f32] = &[1.0];
        let found = || vec![None, Some(Ok(CachedEmbedding::Stored(stored))), None];
        let long = || Err(NoEmbedding::TooLong { tokens: 9 });
        assert_eq!(complete(found(), vec![long(), long()]).unwrap().len(), 3);
        assert!(complete(found(), vec![long()]).is_err());
        assert!(complete(found(), vec![long(), long(), long()]).is_err());
    }
}
