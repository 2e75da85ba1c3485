//! What a cached encoder has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Upper bound of the histogram of latencies; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(3600);

/// What a coalescer has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoalescerStatistics {
    /// Requests that were accepted; those that were refused or dropped before do not count.
    pub requests: u64,
    /// States in them, each time it was asked for.
    pub states: u64,
    /// Calls of the encoder.
    pub calls: u64,
    /// States that were given to the encoder; fewer than `states` where callers asked for the same.
    pub encoded: u64,
    /// Batches that served more than one caller.
    pub shared_batches: u64,
    /// Embeddings that failed the row checks here, after the encoder had reported them as good.
    pub bad: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) states: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) encoded: AtomicU64,
    pub(crate) shared_batches: AtomicU64,
    pub(crate) bad: AtomicU64,
}

/// What a [`CachedEncoder`](super::CachedEncoder) has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
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
    /// Prompts that were cut before they were encoded.
    pub truncated: u64,
    /// Embeddings that were encoded and will not be in the output that is appended to.
    pub not_appended: u64,
    /// What the encoder was asked.
    pub encoder: CoalescerStatistics,
    /// Median time of a request.
    pub p50: Duration,
    /// 95 % of requests took at most this.
    pub p95: Duration,
    /// 99 % of requests took at most this.
    pub p99: Duration,
}

/// Counts requests and what was found for them.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) count: AtomicU64,
    pub(crate) states: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) memory_hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

impl Requests {
    pub(crate) fn new() -> Result<Self, hdrhistogram::CreationError> {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latencies = Mutex::new(Histogram::new_with_max(longest, 3)?);
        let zero = || AtomicU64::new(0);
        let (count, states, misses) = (zero(), zero(), zero());
        let (cache_hits, memory_hits) = (zero(), zero());
        Ok(Self { count, states, cache_hits, memory_hits, misses, latencies })
    }

    pub(crate) fn took(&self, start: Instant) {
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.latencies().saturating_record(nanos);
    }

    /// The times within which 50, 95 and 99 % of requests were answered.
    pub(crate) fn latency(&self) -> [Duration; 3] {
        let latencies = self.latencies();
        [0.50, 0.95, 0.99].map(|q| Duration::from_nanos(latencies.value_at_quantile(q)))
    }

    fn latencies(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
