//! Requests, and sending them again.

use std::sync::Arc;

use ebm_http::reqwest::RequestBuilder;
use ebm_http::reqwest::header::HeaderValue;
use ebm_http::{Client, Failure, Options, base_url, bearer, message_of};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer::{Models, Wrong, parse, proposal};
use super::error::HttpPolicyError;
use super::options::{HttpApi, HttpPolicyOptions};
use crate::search::{NoCandidates, Proposal};
use crate::shown::one_line;

/// Where servers say in an error what it is: OpenAI's form, and that of older servers.
const MESSAGES: [&str; 4] = ["/error/message", "/message", "/detail", "/error"];
/// Statuses by which servers refuse one request: too long, not understood.
const REFUSALS: [u16; 3] = [400, 413, 422];

/// A server and how it is asked.
#[derive(Debug)]
pub(super) struct Server {
    http: Client,
    pub(super) options: HttpPolicyOptions,
}

impl Server {
    pub(super) fn new(options: HttpPolicyOptions) -> Result<Self, HttpPolicyError> {
        check(&options)?;
        let base = base_of(&options.base_url)?;
        let header = options.api_key_variable.as_deref().map(authorization).transpose()?;
        let asking = Options::default()
            .with_timeout(options.timeout)
            .with_retries(options.retries, options.retry_delay)
            .with_retries_of_timeouts()
            .with_max_retry_after(options.max_retry_after)
            .with_max_concurrent(options.max_concurrent)
            .with_passing(|status| status == 429 || status >= 500)
            .with_message_of(|body| message_of(body, &MESSAGES, None, one_line))
            .with_name("the policy's server");
        let http = Client::new(base, header, asking).map_err(HttpPolicyError::Start)?;
        Ok(Self { http, options })
    }

    /// The model to use: the one asked for, or the only one.
    pub(super) async fn find_model(&self) -> Result<String, HttpPolicyError> {
        let url = self.http.url("models");
        let body = self.send(&url, || self.http.get(&url)).await?;
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
        let _turn = self.http.turn().await; // the semaphore is never closed
        match self.send(&url, || self.http.post(&url, request.clone())).await {
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
        (self.http.url(path), body)
    }

    /// The body of the answer to a request.
    async fn send(
        &self,
        url: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Vec<u8>, HttpPolicyError> {
        match self.http.send(url, request, self.options.max_answer_bytes).await {
            Ok(reply) => Ok(reply.body),
            Err(failure) => Err(error_of(url.to_owned(), failure)),
        }
    }
}

fn error_of(url: String, failure: Failure) -> HttpPolicyError {
    match failure {
        Failure::Unreachable { attempts, reason } => {
            HttpPolicyError::Unreachable { url, attempts, reason }
        }
        Failure::TimedOut { limit } => {
            let reason = format!("no whole answer within {limit:?}");
            HttpPolicyError::Unreachable { url, attempts: 1, reason }
        }
        Failure::Status { status, message } => HttpPolicyError::Status { url, status, message },
        Failure::TooLarge { most } => {
            let reason = format!("an answer of more than {most} bytes");
            answer_error(&url, (reason, "ask for fewer or shorter samples"))
        }
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
    let secret = "name the environment variable of the API key";
    let plain = base_url(given, "http://127.0.0.1:8000", secret)
        .map_err(|reason| HttpPolicyError::Option { option: "base_url", reason })?;
    Ok(if plain.ends_with("/v1") { plain } else { format!("{plain}/v1") })
}

fn authorization(variable: &str) -> Result<HeaderValue, HttpPolicyError> {
    let wrong = |reason| HttpPolicyError::ApiKey { variable: variable.to_owned(), reason };
    let key = std::env::var(variable).map_err(|_| wrong("is not set"))?;
    bearer(&key).map_err(wrong)
}
