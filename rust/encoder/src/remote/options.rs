//! How a server is asked.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ebm_cache::Identity;
use ebm_http::bearer;
use ebm_http::reqwest::header::HeaderValue;

use super::error::RemoteError;

/// Options of a [`RemoteEncoder`](super::RemoteEncoder).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteOptions {
    /// Time for one request, from the first byte sent to the last received.
    pub timeout: Duration,
    /// How often a request is sent again: no connection, a broken one, or status 429, 502, 503 or 504.
    pub retries: usize,
    /// Wait before the first retry; it doubles with each, up to a minute, and has jitter.
    pub retry_delay: Duration,
    /// Longest wait that the server may ask for by `Retry-After`.
    pub max_retry_after: Duration,
    /// Requests under way at a time, of all threads together.
    pub max_concurrent: usize,
    /// Most states of one request; the server's own limits count as well.
    pub max_states: usize,
    /// So many requests fail in a row, each with its retries, before none is sent for a while.
    pub breaker_failures: usize,
    /// How long none is sent then.
    pub breaker_wait: Duration,
    /// The encoder that the server must have; any, if it is not given.
    pub identity: Option<Identity>,
    token: Token,
}

/// Where the bearer token is.
#[derive(Clone, PartialEq, Eq)]
enum Token {
    None,
    Given(String),
    File(PathBuf),
    Variable(String),
}

impl fmt::Debug for Token {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Given(_) => f.write_str("Given(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Variable(name) => f.debug_tuple("Variable").field(name).finish(),
        }
    }
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            retries: 5,
            retry_delay: Duration::from_millis(500),
            max_retry_after: Duration::from_secs(120),
            max_concurrent: 4,
            max_states: 256,
            breaker_failures: 3,
            breaker_wait: Duration::from_secs(10),
            identity: None,
            token: Token::None,
        }
    }
}

impl RemoteOptions {
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

    /// Sets the most states of one request.
    #[must_use]
    pub fn with_max_states(mut self, max_states: usize) -> Self {
        self.max_states = max_states;
        self
    }

    /// Sets how many requests fail in a row before none is sent, and for how long.
    #[must_use]
    pub fn with_breaker(mut self, failures: usize, wait: Duration) -> Self {
        (self.breaker_failures, self.breaker_wait) = (failures, wait);
        self
    }

    /// Sets the encoder that the server must have.
    #[must_use]
    pub fn with_identity(mut self, identity: impl Into<Option<Identity>>) -> Self {
        self.identity = identity.into();
        self
    }

    /// Sets the bearer token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Token::Given(token.into());
        self
    }

    /// Reads the bearer token from a file at connect; space around it does not count.
    #[must_use]
    pub fn with_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Token::File(path.into());
        self
    }

    /// Reads the bearer token from an environment variable at connect.
    #[must_use]
    pub fn with_token_variable(mut self, name: impl Into<String>) -> Self {
        self.token = Token::Variable(name.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), RemoteError> {
        let wrong =
            |option, reason: &str| RemoteError::Option { option, reason: reason.to_owned() };
        let counts = [
            ("max_concurrent", self.max_concurrent, 1),
            ("max_states", self.max_states, 1),
            ("breaker_failures", self.breaker_failures, 1),
        ];
        for (option, count, least) in counts {
            if count < least || count > 1 << 20 {
                return Err(wrong(option, &format!("is {count}, expected {least} to 1048576")));
            }
        }
        if self.timeout.is_zero() {
            return Err(wrong("timeout", "must be above 0"));
        }
        Ok(())
    }

    /// The header with the token, which says of itself that it is secret.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, RemoteError> {
        let (place, token) = match &self.token {
            Token::None => return Ok(None),
            Token::Given(token) => ("given".to_owned(), Ok(token.clone())),
            Token::File(path) => {
                let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
                (path.display().to_string(), read)
            }
            Token::Variable(name) => {
                let read = std::env::var(name).map_err(|_| "is not set".to_owned());
                (format!("environment variable {name}"), read)
            }
        };
        let wrong = |reason: String| RemoteError::Token { place: place.clone(), reason };
        let token = token.map_err(wrong)?;
        bearer(&token).map(Some).map_err(|reason| wrong(reason.to_owned()))
    }
}
