//! Policies: what proposes tactics.

mod goal;
#[cfg(feature = "http-policy")]
mod http;
mod recorded;
mod tactics;
mod uniform;

#[cfg(feature = "http-policy")]
pub use http::{HttpApi, HttpPolicy, HttpPolicyError, HttpPolicyOptions};
pub use recorded::RecordedPolicy;
pub use tactics::{TacticList, TacticListError};
pub use uniform::UniformPolicy;
