//! Policies: what proposes tactics.

#[cfg(feature = "http-policy")]
mod http;

#[cfg(feature = "http-policy")]
pub use http::{HttpApi, HttpPolicy, HttpPolicyError, HttpPolicyOptions};
