//! Requests, and sending them again.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{RequestBuilder, Response, redirect};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use crate::failure::{Failure, innermost};
use crate::options::Options;

/// Longest wait between two attempts, where the server does not ask for one.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Bytes of an error.
const LARGEST_ERROR: usize = 1 << 20;

/// An answer with a status of success.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reply {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A header's text; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A failed attempt.
struct Attempt {
    failure: Failure,
    /// Whether sending the request again may help.
    passing: bool,
    /// How long the server asks to wait.
    wait: Option<Duration>,
}

/// A server and how it is asked.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    options: Options,
    under_way: Semaphore,
}

impl Client {
    /// A client of the server at `base`, an address of [`base_url`](crate::base_url).
    ///
    /// # Errors
    /// The system lacks what a client needs, such as root certificates.
    pub fn new(
        base: String,
        authorization: Option<HeaderValue>,
        options: Options,
    ) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .timeout(options.timeout)
            // A redirected POST would become a GET.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| innermost(&error))?;
        let under_way = Semaphore::new(options.max_concurrent.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self { http, base, options, under_way })
    }

    /// Where a path of the server is.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// A turn of those that `max_concurrent` allows.
    ///
    /// # Errors
    /// None: the semaphore is never closed.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.under_way.acquire().await
    }

    /// A request that asks.
    pub fn get(&self, url: &str) -> RequestBuilder {
        self.http.get(url)
    }

    /// A request that sends JSON.
    pub fn post(&self, url: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.http.post(url).header(CONTENT_TYPE, "application/json").body(body)
    }

    /// Sends a request until there is an answer of at most so many bytes.
    ///
    /// # Errors
    /// [`Failure`], after all attempts.
    pub async fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
        most: usize,
    ) -> Result<Reply, Failure> {
        let options = &self.options;
        let backoff = ExponentialBuilder::default()
            .with_jitter()
            .with_factor(2.0)
            .with_min_delay(options.retry_delay)
            .with_max_delay(LONGEST_DELAY.max(options.retry_delay))
            .with_max_times(options.retries);
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            self.attempt(attempts, request(), most)
        };
        attempt
            .retry(backoff)
            .when(|failed: &Attempt| failed.passing)
            .adjust(|failed, delay| match failed.wait {
                Some(wait) => {
                    delay.filter(|_| wait <= options.max_retry_after).map(|delay| delay.max(wait))
                }
                None => delay,
            })
            .notify(|failed, delay| {
                let reason = failed.failure.reason();
                tracing::warn!(url, reason, ?delay, "{} is asked again", options.name);
            })
            .await
            .map_err(|failed| failed.failure)
    }

    async fn attempt(
        &self,
        attempts: usize,
        request: RequestBuilder,
        most: usize,
    ) -> Result<Reply, Attempt> {
        let broken = |error: reqwest::Error| self.broken(attempts, &error);
        let mut answer = request.send().await.map_err(broken)?;
        let (status, wait) = (answer.status(), retry_after(&answer));
        let headers = std::mem::take(answer.headers_mut());
        let length = answer.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = Vec::with_capacity(length.unwrap_or_default().min(most));
        while let Some(bytes) = answer.chunk().await.map_err(broken)? {
            if !status.is_success() && body.len() > LARGEST_ERROR {
                break; // enough to know what it says
            }
            if status.is_success() && body.len() + bytes.len() > most {
                let failure = Failure::TooLarge { most };
                return Err(Attempt { failure, passing: false, wait: None });
            }
            body.extend_from_slice(&bytes);
        }
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        let (status, mut message) = (status.as_u16(), (self.options.message_of)(&body));
        let passing = (self.options.is_passing)(status);
        if passing {
            message = format!("{message} ({attempts} attempts)");
        }
        Err(Attempt { failure: Failure::Status { status, message }, passing, wait })
    }

    fn broken(&self, attempts: usize, error: &reqwest::Error) -> Attempt {
        let timed_out = Failure::TimedOut { limit: self.options.timeout };
        let reason = if !error.is_timeout() {
            let what = if error.is_connect() { "no connection" } else { "the connection broke" };
            format!("{what}: {}", innermost(error))
        } else if self.options.retries_timeouts {
            timed_out.reason()
        } else {
            return Attempt { failure: timed_out, passing: false, wait: None };
        };
        Attempt { failure: Failure::Unreachable { attempts, reason }, passing: true, wait: None }
    }
}

/// How many seconds a server asks to wait.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
