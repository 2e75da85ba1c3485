//! Requests, and sending them again.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer::{Models, Wrong, parse, proposal};
use super::error::HttpPolicyError;
use super::options::{HttpApi, HttpPolicyOptions};
use crate::search::{NoCandidates, Proposal};
use crate::shown::one_line;

/// Longest wait between two attempts, where the server does not ask for one.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Characters of a server's error that are passed on.
const MESSAGE: usize = 500;
/// Statuses by which servers refuse one request: too long, not understood.
const REFUSALS: [u16; 3] = [400, 413, 422];

/// A failed attempt.
enum Failure {
    /// Sending the request again may help; the server may ask for a wait.
    Passing { reason: String, status: Option<u16>, wait: Option<Duration> },
    /// It will not.
    Final(HttpPolicyError),
}

/// A server and how it is asked.
#[derive(Debug)]
pub(super) struct Server {
    client: Client,
    base: String,
    pub(super) options: HttpPolicyOptions,
    under_way: Semaphore,
}

impl Server {
    pub(super) fn new(options: HttpPolicyOptions) -> Result<Self, HttpPolicyError> {
        check(&options)?;
        let base = base_of(&options.base_url)?;
        let mut headers = HeaderMap::new();
        if let Some(variable) = &options.api_key_variable {
            headers.insert(AUTHORIZATION, bearer(variable)?);
        }
        let client = Client::builder()
            .default_headers(headers)
            .timeout(options.timeout)
            // A redirected POST would become a GET.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| HttpPolicyError::Start(innermost(&error)))?;
        let under_way = Semaphore::new(options.max_concurrent);
        Ok(Self { client, base, options, under_way })
    }

    /// The model to use: the one asked for, or the only one.
    pub(super) async fn find_model(&self) -> Result<String, HttpPolicyError> {
        let url = format!("{}/models", self.base);
        let body = self.send(&url, || self.client.get(&url)).await?;
        let models: Models = parse(&body).map_err(|wrong| answer_error(&url, wrong))?;
        let served: Vec<String> = models.data.into_iter().map(|model| model.id).collect();
        match (&self.options.model, served.as_slice()) {
            (Some(model), _) if served.contains(model) => Ok(model.clone()),
            (Some(model), _) => {
                Err(HttpPolicyError::UnknownModel { url, model: model.clone(), served })
            }
            (None, [only]) => Ok(only.clone()),
            (None, _) => Err(HttpPolicyError::WhichModel { url, served }),
        }
    }

    /// The candidates of a state.
    pub(super) async fn ask(
        self: Arc<Self>,
        model: Arc<str>,
        state: String,
    ) -> Result<Proposal, HttpPolicyError> {
        let (url, request) = self.request(&model, &state);
        let request = request.to_string();
        // Never closed.
        let _permit = self.under_way.acquire().await;
        let post = || {
            let post = self.client.post(&url).header(CONTENT_TYPE, "application/json");
            post.body(request.clone())
        };
        match self.send(&url, post).await {
            Ok(body) => proposal(&body, &self.options).map_err(|wrong| answer_error(&url, wrong)),
            Err(HttpPolicyError::Status { status, message, .. }) if REFUSALS.contains(&status) => {
                Ok(Err(NoCandidates(format!(
                    "the server refuses the prompt ({status}): {message}"
                ))))
            }
            Err(error) => Err(error),
        }
    }

    fn request(&self, model: &str, state: &str) -> (String, Value) {
        let options = &self.options;
        let prompt = options.template.replace("{state}", state);
        let mut body = json!({
            "model": model,
            "n": options.samples,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "stream": false,
        });
        if !options.stop.is_empty() {
            body["stop"] = json!(options.stop);
        }
        if let Some(seed) = options.seed {
            body["seed"] = json!(seed);
        }
        let (path, log_probs) = match options.api {
            HttpApi::Completions => {
                body["prompt"] = json!(prompt);
                ("completions", json!(1))
            }
            HttpApi::Chat => {
                body["messages"] = json!([{"role": "user", "content": prompt}]);
                ("chat/completions", json!(true))
            }
        };
        if !options.uniform {
            body["logprobs"] = log_probs;
        }
        (format!("{}/{path}", self.base), body)
    }

    /// Sends a request until there is an answer.
    async fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Vec<u8>, HttpPolicyError> {
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
            self.attempt(url, request())
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
                    tracing::warn!(url, reason, ?delay, "the policy server is asked again");
                }
            })
            .await;
        sent.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Passing { reason, status: Some(status), .. } => {
                let message = format!("{reason} ({attempts} attempts)");
                HttpPolicyError::Status { url: url.to_owned(), status, message }
            }
            Failure::Passing { reason, .. } => {
                HttpPolicyError::Unreachable { url: url.to_owned(), attempts, reason }
            }
        })
    }

    async fn attempt(&self, url: &str, request: RequestBuilder) -> Result<Vec<u8>, Failure> {
        let passing = |error: &reqwest::Error| Failure::Passing {
            reason: why(error, self.options.timeout),
            status: None,
            wait: None,
        };
        let mut answer = request.send().await.map_err(|error| passing(&error))?;
        let status = answer.status();
        let wait = retry_after(&answer);
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(|error| passing(&error))? {
            body.extend_from_slice(&bytes);
            if body.len() > self.options.max_answer_bytes {
                let reason =
                    format!("an answer of more than {} bytes", self.options.max_answer_bytes);
                let hint = "ask for fewer or shorter samples";
                return Err(Failure::Final(answer_error(url, (reason, hint))));
            }
        }
        if status.is_success() {
            return Ok(body);
        }
        let message = message_of(&body);
        if status.as_u16() == 429 || status.is_server_error() {
            let status = Some(status.as_u16());
            return Err(Failure::Passing { reason: message, status, wait });
        }
        let (url, status) = (url.to_owned(), status.as_u16());
        Err(Failure::Final(HttpPolicyError::Status { url, status, message }))
    }
}

fn answer_error(url: &str, (reason, hint): Wrong) -> HttpPolicyError {
    HttpPolicyError::Answer { url: url.to_owned(), reason, hint }
}

fn check(options: &HttpPolicyOptions) -> Result<(), HttpPolicyError> {
    let wrong =
        |option, reason: &str| Err(HttpPolicyError::Option { option, reason: reason.to_owned() });
    let counts = [
        ("samples", options.samples as usize),
        ("max_tokens", options.max_tokens as usize),
        ("max_concurrent", options.max_concurrent),
        ("max_answer_bytes", options.max_answer_bytes),
    ];
    if let Some((option, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
        return wrong(option, "must be at least 1");
    }
    if options.max_concurrent > Semaphore::MAX_PERMITS {
        return wrong("max_concurrent", "too large");
    }
    if !options.template.contains("{state}") {
        return wrong("template", "has no {state}, the place for the state");
    }
    if !(options.temperature.is_finite() && options.temperature >= 0.0) {
        return wrong("temperature", "must be a number of at least 0");
    }
    if !(options.top_p > 0.0 && options.top_p <= 1.0) {
        return wrong("top_p", "must be above 0 and at most 1");
    }
    if options.stop.iter().any(String::is_empty) {
        return wrong("stop", "has an empty text");
    }
    if options.timeout.is_zero() {
        return wrong("timeout", "must be above 0");
    }
    Ok(())
}

/// The address up to `/v1`.
fn base_of(given: &str) -> Result<String, HttpPolicyError> {
    let wrong = |reason: String| HttpPolicyError::Option { option: "base_url", reason };
    let url = Url::parse(given).map_err(|error| {
        wrong(format!("{given:?} is no URL ({error})\nhint: such as http://127.0.0.1:8000"))
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        let reason = "holds a user or a password, which messages would show";
        return Err(wrong(format!("{reason}\nhint: name the environment variable of the API key")));
    }
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong(format!("{given:?} is no http:// or https:// URL")));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(format!("{given:?} has something behind its path")));
    }
    let plain = url.as_str().trim_end_matches('/');
    Ok(if plain.ends_with("/v1") { plain.to_owned() } else { format!("{plain}/v1") })
}

fn bearer(variable: &str) -> Result<HeaderValue, HttpPolicyError> {
    let wrong = |reason| HttpPolicyError::ApiKey { variable: variable.to_owned(), reason };
    let key = std::env::var(variable).map_err(|_| wrong("is not set"))?;
    let key = key.trim();
    if key.is_empty() {
        return Err(wrong("is empty"));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| wrong("has characters that no header may have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// How many seconds a server asks to wait.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a server says in an error: OpenAI's form, that of older servers, or plain text.
fn message_of(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let places = ["/error/message", "/message", "/detail", "/error"];
    let found = parsed.as_ref().and_then(|json| {
        places.iter().find_map(|place| json.pointer(place).and_then(Value::as_str))
    });
    let text = found.map_or_else(|| String::from_utf8_lossy(body), Into::into);
    let text = one_line(&text);
    if text.is_empty() { "no message".to_owned() } else { text.chars().take(MESSAGE).collect() }
}

fn why(error: &reqwest::Error, timeout: Duration) -> String {
    if error.is_timeout() {
        return format!("no whole answer within {timeout:?}");
    }
    let what = if error.is_connect() { "no connection" } else { "the connection broke" };
    format!("{what} ({})", innermost(error))
}

/// The cause behind an error, which says what happened.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
