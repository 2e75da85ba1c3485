//! How encoders are shared and cached.

use std::path::PathBuf;
use std::time::Duration;

use ebm_cache::WriterOptions;

/// How requests are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoalescerOptions {
    /// How long a batch waits for more callers, where the batch before had several.
    ///
    /// A lone caller never waits; an hour is the longest wait.
    pub max_wait: Duration,
    /// Most states of a batch.
    pub max_states: usize,
    /// Most bytes of text in a batch, a measure of its tokens; a longer state is a batch by itself.
    pub max_bytes: usize,
    /// Most requests that wait; whoever asks then has to wait as well.
    pub queue: usize,
}

impl Default for CoalescerOptions {
    fn default() -> Self {
        let max_wait = Duration::from_millis(3);
        Self { max_wait, max_states: 256, max_bytes: 64 * 1024, queue: 1024 }
    }
}

impl CoalescerOptions {
    /// Sets how long a batch waits for more callers.
    #[must_use]
    pub fn with_max_wait(self, max_wait: Duration) -> Self {
        Self { max_wait, ..self }
    }

    /// Sets the most states of a batch.
    #[must_use]
    pub fn with_max_states(self, max_states: usize) -> Self {
        Self { max_states, ..self }
    }

    /// Sets the most bytes of text in a batch.
    #[must_use]
    pub fn with_max_bytes(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Sets the most requests that wait.
    #[must_use]
    pub fn with_queue(self, queue: usize) -> Self {
        Self { queue, ..self }
    }
}

/// How a [`CachedEncoder`](crate::CachedEncoder) works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CachedEncoderOptions {
    /// How requests are merged.
    pub coalescing: CoalescerOptions,
    /// Most bytes of embeddings encoded at search time that are kept in memory.
    pub memory_bytes: u64,
    /// A cache, a file or a folder of parts, to which embeddings encoded at search time are
    /// appended, crash-safe.
    pub append_to: Option<PathBuf>,
    /// No appended embedding stays unsaved for longer than this, also while nothing is asked.
    pub checkpoint_interval: Duration,
    /// Go on though the cache was made with a different encoder, or with an unknown one. Logged as a
    /// warning.
    pub allow_other_identity: bool,
}

impl Default for CachedEncoderOptions {
    fn default() -> Self {
        Self {
            coalescing: CoalescerOptions::default(),
            memory_bytes: 1 << 30,
            append_to: None,
            checkpoint_interval: WriterOptions::default().checkpoint_interval,
            allow_other_identity: false,
        }
    }
}

impl CachedEncoderOptions {
    /// Sets how requests are merged.
    #[must_use]
    pub fn with_coalescing(self, coalescing: CoalescerOptions) -> Self {
        Self { coalescing, ..self }
    }

    /// Sets the most bytes of embeddings that are kept in memory.
    #[must_use]
    pub fn with_memory_bytes(self, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..self }
    }

    /// Sets the cache that embeddings are appended to.
    #[must_use]
    pub fn with_append_to(self, append_to: impl Into<PathBuf>) -> Self {
        Self { append_to: Some(append_to.into()), ..self }
    }

    /// Sets the longest time that an embedding stays unsaved.
    #[must_use]
    pub fn with_checkpoint_interval(self, checkpoint_interval: Duration) -> Self {
        Self { checkpoint_interval, ..self }
    }

    /// Sets whether a cache of a different encoder is served.
    #[must_use]
    pub fn with_allow_other_identity(self, allow_other_identity: bool) -> Self {
        Self { allow_other_identity, ..self }
    }
}
