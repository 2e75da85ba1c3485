//! What can go wrong with a policy server.

use crate::shown::one_line;

/// Why a policy server gives no tactics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpPolicyError {
    /// An option has no meaning.
    #[error("`{option}`: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The environment variable of the API key is not set, or is no header value.
    #[error("the API key: environment variable {variable} {reason}\nhint: export {variable}=...")]
    ApiKey {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server does not serve the model.
    #[error(
        "{url}: serves no model {model:?}, only {}\nhint: name one of them, or start the server with it",
        one_line(&served.join(", "))
    )]
    UnknownModel {
        /// What was asked.
        url: String,
        /// The model.
        model: String,
        /// The models that it serves.
        served: Vec<String>,
    },
    /// The server serves several models, or none, and no model was named.
    #[error("{url}: serves {}\nhint: name the model", listed(served))]
    WhichModel {
        /// What was asked.
        url: String,
        /// The models that it serves.
        served: Vec<String>,
    },
    /// No answer came, also when asked again.
    #[error(
        "{url}: {reason}, {attempts} times\n\
         hint: is the server running there, and free? if it is slow, give it more time"
    )]
    Unreachable {
        /// What was asked.
        url: String,
        /// How often.
        attempts: usize,
        /// What happened the last time.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{url}: status {status}: {message}{}", hint_of(*status))]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What the server says, its first 500 characters.
        message: String,
    },
    /// The answer is not what the endpoint answers.
    #[error("{url}: {reason}\nhint: {hint}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
        /// The way out.
        hint: &'static str,
    },
    /// The system gives no thread, or no network.
    #[error("cannot start the policy's client: {0}")]
    Start(String),
    /// The policy was made in another process, before a fork.
    #[error("the policy was made before this process was forked\nhint: make it after the fork")]
    Forked,
}

impl HttpPolicyError {
    /// Whether every other request would end like this one: wrong key, wrong address, wrong model.
    pub(super) const fn is_for_all(&self) -> bool {
        matches!(self, Self::Status { status: 401 | 403 | 404, .. })
    }
}

fn listed(served: &[String]) -> String {
    match served {
        [] => "no model".to_owned(),
        _ => format!("{} models: {}", served.len(), one_line(&served.join(", "))),
    }
}

fn hint_of(status: u16) -> &'static str {
    match status {
        300..=399 => "\nhint: give the address that the server redirects to",
        401 | 403 => "\nhint: name the environment variable that holds the API key",
        404 => {
            "\nhint: is that the address of a server with OpenAI's endpoints, such as vLLM or SGLang?"
        }
        429 => "\nhint: ask it less at a time, by fewer searches at once",
        _ => "",
    }
}
