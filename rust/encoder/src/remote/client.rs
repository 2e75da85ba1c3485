//! Requests to the server.

use ebm_http::reqwest::RequestBuilder;
use ebm_http::reqwest::header::{ACCEPT, HeaderName};
use ebm_http::{Client as Http, Failure, Options, Reply, base_url, message_of};
use recloser::{AsyncRecloser, Error as BreakerError, Recloser};
use tokio::sync::{AcquireError, SemaphorePermit};

use super::error::RemoteError;
use super::options::RemoteOptions;

/// What an answer with embeddings is.
pub(super) const ARROW_STREAM: &str = "application/vnd.apache.arrow.stream";
/// Header of each answer: the digest of the encoder's identity.
pub(super) const IDENTITY_HEADER: HeaderName = HeaderName::from_static("ebm-identity");
/// Header of each answer: another one after each start of the server.
pub(super) const INSTANCE_HEADER: HeaderName = HeaderName::from_static("ebm-instance");
/// Bytes of what the server says of itself.
const SMALL_ANSWER: usize = 1 << 20;

/// A server and how it is asked.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    options: RemoteOptions,
    breaker: AsyncRecloser,
}

impl Client {
    pub(super) fn new(url: &str, options: RemoteOptions) -> Result<Self, RemoteError> {
        options.check()?;
        let base = base_url(url, "http://127.0.0.1:30001", "give a token by a file")
            .map_err(|reason| RemoteError::Option { option: "url", reason })?;
        let asking = Options::default()
            .with_timeout(options.timeout)
            .with_retries(options.retries, options.retry_delay)
            .with_max_retry_after(options.max_retry_after)
            .with_max_concurrent(options.max_concurrent)
            .with_name("the encoder's server")
            .with_message_of(|body| {
                // Our form, or plain text of a proxy.
                let shown = |text: &str| text.trim().to_owned();
                message_of(body, &["/error/message"], Some("/error/hint"), shown)
            });
        let http = Http::new(base, options.authorization()?, asking).map_err(RemoteError::Start)?;
        let breaker = Recloser::custom()
            // Opens where all of the last calls failed.
            .error_rate_closed(1.0)
            .closed_len(options.breaker_failures)
            .half_open_len(1)
            .open_wait(options.breaker_wait)
            .build();
        Ok(Self { http, options, breaker: breaker.into() })
    }

    pub(super) fn url(&self, path: &str) -> String {
        self.http.url(path)
    }

    pub(super) const fn options(&self) -> &RemoteOptions {
        &self.options
    }

    /// A turn of those that `max_concurrent` allows.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.http.turn().await
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
        let post = || self.http.post(&url, body.clone()).header(ACCEPT, ARROW_STREAM);
        self.send(&url, post, most).await
    }

    /// Sends a request until there is an answer, unless too many before it failed.
    async fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
        most: usize,
    ) -> Result<Reply, RemoteError> {
        let sent = async {
            self.http
                .send(url, request, most)
                .await
                .map_err(|failure| RemoteError::of(url, failure))
        };
        self.breaker.call_with(RemoteError::is_outage, sent).await.map_err(|error| match error {
            BreakerError::Inner(error) => error,
            BreakerError::Rejected => {
                RemoteError::Open { url: url.to_owned(), wait: self.options.breaker_wait }
            }
        })
    }
}

impl RemoteError {
    fn of(url: &str, failure: Failure) -> Self {
        let url = url.to_owned();
        match failure {
            Failure::Unreachable { attempts, reason } => {
                Self::Unreachable { url, attempts, reason }
            }
            Failure::TimedOut { limit } => Self::TimedOut { url, limit },
            Failure::Status { status, message } => Self::Status { url, status, message },
            Failure::TooLarge { most } => {
                Self::Answer { url, reason: format!("more than the {most} bytes that it can need") }
            }
        }
    }
}
