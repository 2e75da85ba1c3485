//! How a server is asked.

use std::time::Duration;

/// Options of a [`Client`](crate::Client).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Time for one request, from the first byte sent to the last received.
    pub timeout: Duration,
    /// How often a request is sent again.
    pub retries: usize,
    /// Wait before the first retry; it doubles with each, up to a minute, and has jitter.
    pub retry_delay: Duration,
    /// Longest wait that the server may ask for by `Retry-After`.
    pub max_retry_after: Duration,
    /// Requests under way at a time, of all threads together; at least one.
    pub max_concurrent: usize,
    /// Whether a request is sent again that took too long. The server may still be at work on it.
    pub retries_timeouts: bool,
    /// The statuses after which the same request may succeed later.
    pub is_passing: fn(u16) -> bool,
    /// Reads what the server says in the body of an error.
    pub message_of: fn(&[u8]) -> String,
    /// What the server is, in the log.
    pub name: &'static str,
}

impl Default for Options {
    /// As a busy server needs it: two minutes, five retries, 429, 502, 503 and 504 are passing.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            retries: 5,
            retry_delay: Duration::from_millis(500),
            max_retry_after: Duration::from_secs(120),
            max_concurrent: 4,
            retries_timeouts: false,
            is_passing: |status| matches!(status, 429 | 502 | 503 | 504),
            message_of: |body| crate::message_of(body, &["/error/message"], None, str::to_owned),
            name: "the server",
        }
    }
}

impl Options {
    /// Sets the time for one request.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how often a request is sent again, and the wait before the first time.
    #[must_use]
    pub fn with_retries(mut self, retries: usize, delay: Duration) -> Self {
        (self.retries, self.retry_delay) = (retries, delay);
        self
    }

    /// Sets the longest wait that the server may ask for.
    #[must_use]
    pub fn with_max_retry_after(mut self, longest: Duration) -> Self {
        self.max_retry_after = longest;
        self
    }

    /// Sets the requests under way at a time.
    #[must_use]
    pub fn with_max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

    /// Sets that a request is sent again when it took too long.
    #[must_use]
    pub fn with_retries_of_timeouts(mut self) -> Self {
        self.retries_timeouts = true;
        self
    }

    /// Sets the statuses after which the same request may succeed later.
    #[must_use]
    pub fn with_passing(mut self, is_passing: fn(u16) -> bool) -> Self {
        self.is_passing = is_passing;
        self
    }

    /// Sets what reads an error.
    #[must_use]
    pub fn with_message_of(mut self, message_of: fn(&[u8]) -> String) -> Self {
        self.message_of = message_of;
        self
    }

    /// Sets what the server is, in the log.
    #[must_use]
    pub fn with_name(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }
}
