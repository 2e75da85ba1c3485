//! How a policy server is asked.

use std::time::Duration;

/// The endpoint that proposes tactics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum HttpApi {
    /// `/v1/completions`: the model goes on where the prompt ends.
    #[default]
    Completions,
    /// `/v1/chat/completions`: the prompt is what the user says.
    Chat,
}

/// Options of an [`HttpPolicy`](super::HttpPolicy).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct HttpPolicyOptions {
    /// Where the server is, with or without `/v1`: `http://127.0.0.1:8000`.
    pub base_url: String,
    /// The model as the server calls it; without, the only one that it serves.
    pub model: Option<String>,
    /// The endpoint.
    pub api: HttpApi,
    /// The prompt, with `{state}` where the state is to be.
    pub template: String,
    /// Samples for each state.
    pub samples: u32,
    /// Temperature of the samples.
    pub temperature: f64,
    /// Samples are drawn from the most probable tokens that make up this share.
    pub top_p: f64,
    /// Most tokens of a sample. One that has not ended by then is no candidate.
    pub max_tokens: u32,
    /// Texts that end a tactic.
    pub stop: Vec<String>,
    /// Seed of the samples, where the server heeds it.
    pub seed: Option<i64>,
    /// Candidates get equal log-probabilities, and the server is not asked for any.
    pub uniform: bool,
    /// Environment variable that holds the API key.
    pub api_key_variable: Option<String>,
    /// Requests under way at a time, of all threads together.
    pub max_concurrent: usize,
    /// Time for one request, from the first byte sent to the last received.
    pub timeout: Duration,
    /// How often a request is sent again.
    pub retries: usize,
    /// Wait before the first retry; it doubles with each, up to a minute, and has jitter.
    pub retry_delay: Duration,
    /// Longest wait that a server may ask for by `Retry-After`.
    pub max_retry_after: Duration,
    /// Largest answer in bytes.
    pub max_answer_bytes: usize,
}

impl HttpPolicyOptions {
    /// The usual options for a server: 8 samples of at most 256 tokens at temperature 1, each up to
    /// the first newline, of the prompt `{state}`.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        Self {
            base_url: base_url.into(),
            model: None,
            api: HttpApi::default(),
            template: "{state}".to_owned(),
            samples: 8,
            temperature: 1.0,
            top_p: 1.0,
            max_tokens: 256,
            stop: vec!["\n".to_owned()],
            seed: None,
            uniform: false,
            api_key_variable: None,
            max_concurrent: 16,
            timeout: Duration::from_secs(120),
            retries: 5,
            retry_delay: Duration::from_millis(500),
            max_retry_after: Duration::from_secs(120),
            max_answer_bytes: 16 << 20,
        }
    }

    /// Sets the model.
    #[must_use]
    pub fn with_model(mut self, model: impl Into<Option<String>>) -> Self {
        self.model = model.into();
        self
    }

    /// Sets the endpoint.
    #[must_use]
    pub fn with_api(mut self, api: HttpApi) -> Self {
        self.api = api;
        self
    }

    /// Sets the prompt.
    #[must_use]
    pub fn with_template(mut self, template: impl Into<String>) -> Self {
        self.template = template.into();
        self
    }

    /// Sets the samples for each state.
    #[must_use]
    pub fn with_samples(mut self, samples: u32) -> Self {
        self.samples = samples;
        self
    }

    /// Sets the temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets the share of the most probable tokens.
    #[must_use]
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets the most tokens of a sample.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: u32) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sets the texts that end a tactic.
    #[must_use]
    pub fn with_stop<T: Into<String>>(mut self, stop: impl IntoIterator<Item = T>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: impl Into<Option<i64>>) -> Self {
        self.seed = seed.into();
        self
    }

    /// Sets whether candidates get equal log-probabilities.
    #[must_use]
    pub fn with_uniform(mut self, uniform: bool) -> Self {
        self.uniform = uniform;
        self
    }

    /// Sets the environment variable of the API key.
    #[must_use]
    pub fn with_api_key_variable(mut self, variable: impl Into<Option<String>>) -> Self {
        self.api_key_variable = variable.into();
        self
    }

    /// Sets the requests under way at a time.
    #[must_use]
    pub fn with_max_concurrent(mut self, max_concurrent: usize) -> Self {
        self.max_concurrent = max_concurrent;
        self
    }

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

    /// Sets the longest wait that a server may ask for.
    #[must_use]
    pub fn with_max_retry_after(mut self, longest: Duration) -> Self {
        self.max_retry_after = longest;
        self
    }

    /// Sets the largest answer.
    #[must_use]
    pub fn with_max_answer_bytes(mut self, bytes: usize) -> Self {
        self.max_answer_bytes = bytes;
        self
    }
}
