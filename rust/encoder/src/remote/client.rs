//! Requests to the server, and sending them again.

use std::error::Error;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use recloser::{AsyncRecloser, Error as BreakerError, Recloser};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Client as Http, RequestBuilder, Response, Url, redirect};
use serde_json::Value;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use super::error::RemoteError;
use super::options::RemoteOptions;

/// What an answer with embeddings is.
pub(super) const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
/// Header of each answer: the digest of the encoder's identity.
pub(super) const IDENTITY_HEADER: HeaderName = HeaderName::from_static("ebm-identity");
/// Header of each answer: another one after each start of the server.
pub(super) const INSTANCE_HEADER: HeaderName = HeaderName::from_static("ebm-instance");
/// Longest wait between two attempts, where the server does not ask for one.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Characters of a server's error that are passed on.
const MESSAGE: usize = 500;
/// Bytes of an error, or of what the server says of itself.
const SMALL_ANSWER: usize = 1 << 20;
/// Statuses after which the same request may succeed later.
const PASSING: [u16; 4] = [429, 502, 503, 504];

/// An answer with a status of success.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A header's text; empty where there is none.
    pub(super) fn header(&self, name: &HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A failed attempt.
enum Failure {
    /// Sending the request again may help; the server may ask for a wait.
    Passing { reason: String, status: Option<u16>, wait: Option<Duration> },
    /// It will not.
    Final(RemoteError),
}

/// A server and how it is asked.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    base: String,
    options: RemoteOptions,
    under_way: Semaphore,
    breaker: AsyncRecloser,
}

impl Client {
    pub(super) fn new(url: &str, options: RemoteOptions) -> Result<Self, RemoteError> {
        options.check()?;
        let base = base_of(url)?;
        let mut headers = HeaderMap::new();
        if let Some(value) = options.authorization()? {
            headers.insert(AUTHORIZATION, value);
        }
        let http = Http::builder()
            .default_headers(headers)
            .timeout(options.timeout)
            // A redirected POST would become a GET.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| RemoteError::Start(innermost(&error)))?;
        let breaker = Recloser::custom()
            // Opens where all of the last calls failed.
            .error_rate_closed(1.0)
            .closed_len(options.breaker_failures)
            .half_open_len(1)
            .open_wait(options.breaker_wait)
            .build();
        let under_way = Semaphore::new(options.max_concurrent);
        Ok(Self { http, base, options, under_way, breaker: breaker.into() })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    pub(super) const fn options(&self) -> &RemoteOptions {
        &self.options
    }

    /// A turn of those that `max_concurrent` allows.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.under_way.acquire().await
    }

    /// What an endpoint says of the server.
    pub(super) async fn get(&self, path: &str) -> Result<Reply, RemoteError> {
        let url = self.url(path);
        let get = || self.http.get(&url).header(ACCEPT, "application/json");
        self.send(&url, get, SMALL_ANSWER).await
    }

    /// The answer to a request for embeddings.
    pub(super) async fn encode(&self, body: Vec<u8>, most: usize) -> Result<Reply, RemoteError> {
        let url = self.url("encode");
        let post = || {
            let post = self.http.post(&url).header(CONTENT_TYPE, "application/json");
            post.header(ACCEPT, HeaderValue::from_static(ARROW_STREAM)).body(body.clone())
        };
        self.send(&url, post, most).await
    }

    /// Sends a request until there is an answer, unless too many before it failed.
    async fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
        most: usize,
    ) -> Result<Reply, RemoteError> {
        let retried = self.retried(url, request, most);
        self.breaker.call_with(RemoteError::is_outage, retried).await.map_err(|error| match error {
            BreakerError::Inner(error) => error,
            BreakerError::Rejected => {
                RemoteError::Open { url: url.to_owned(), wait: self.options.breaker_wait }
            }
        })
    }

    async fn retried(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
        most: usize,
    ) -> Result<Reply, RemoteError> {
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
            self.attempt(url, request(), most)
        };
        let sent = attempt
            .retry(backoff)
            .when(|failure| matches!(failure, Failure::Passing { .. }))
            .adjust(|failure, delay| match failure {
                Failure::Passing { wait: Some(wait), .. } => {
                    delay.filter(|_| *wait <= options.max_retry_after).map(|delay| delay.max(*wait))
                }
                _ => delay,
            })
            .notify(|failure, delay| {
                if let Failure::Passing { reason, .. } = failure {
                    tracing::warn!(url, reason, ?delay, "the encoder's server is asked again");
                }
            })
            .await;
        sent.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Passing { reason, status: Some(status), .. } => {
                let message = format!("{reason} ({attempts} attempts)");
                RemoteError::Status { url: url.to_owned(), status, message }
            }
            Failure::Passing { reason, .. } => {
                RemoteError::Unreachable { url: url.to_owned(), attempts, reason }
            }
        })
    }

    async fn attempt(
        &self,
        url: &str,
        request: RequestBuilder,
        most: usize,
    ) -> Result<Reply, Failure> {
        let failed = |error: reqwest::Error| self.failure(url, &error);
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let wait = retry_after(&answer);
        let most = if status.is_success() { most } else { SMALL_ANSWER };
        let headers = std::mem::take(answer.headers_mut());
        let length = answer.content_length().and_then(|length| usize::try_from(length).ok());
        let mut body = Vec::with_capacity(length.unwrap_or_default().min(most));
        while let Some(bytes) = answer.chunk().await.map_err(failed)? {
            if body.len() + bytes.len() > most {
                let reason = format!("more than the {most} bytes that it can need");
                return Err(Failure::Final(RemoteError::Answer { url: url.to_owned(), reason }));
            }
            body.extend_from_slice(&bytes);
        }
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        let (message, status) = (message_of(&body), status.as_u16());
        if PASSING.contains(&status) {
            return Err(Failure::Passing { reason: message, status: Some(status), wait });
        }
        Err(Failure::Final(RemoteError::Status { url: url.to_owned(), status, message }))
    }

    fn failure(&self, url: &str, error: &reqwest::Error) -> Failure {
        if error.is_timeout() {
            let limit = self.options.timeout;
            return Failure::Final(RemoteError::TimedOut { url: url.to_owned(), limit });
        }
        let what = if error.is_connect() { "no connection" } else { "the connection broke" };
        let reason = format!("{what}: {}", innermost(error));
        Failure::Passing { reason, status: None, wait: None }
    }
}

/// The address without a slash at its end.
fn base_of(given: &str) -> Result<String, RemoteError> {
    let wrong = |reason: String| RemoteError::Option { option: "url", reason };
    let url = Url::parse(given).map_err(|error| {
        wrong(format!("{given:?} is no URL ({error})\nhint: such as http://127.0.0.1:30001"))
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "holds a user or a password, which messages would show";
        return Err(wrong(format!("{reason}\nhint: give a token by a file")));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong(format!("{given:?} is no http:// or https:// URL")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(format!("{given:?} has something behind its path")));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// How many seconds a server asks to wait.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a server says in an error, with its hint: our form, or plain text of a proxy.
fn message_of(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let text = |place: &str| parsed.as_ref()?.pointer(place)?.as_str().map(str::to_owned);
    let mut found =
        text("/error/message").unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    if let Some(hint) = text("/error/hint").filter(|hint| !hint.is_empty()) {
        found = format!("{found} ({hint})");
    }
    if found.is_empty() { "no message".to_owned() } else { found.chars().take(MESSAGE).collect() }
}

/// The cause behind an error, which says what happened.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
