//! Best-first proof search.

mod control;
mod environment;
mod policy;

pub use control::{Cancel, Control, Stop};
pub use environment::{
    Applied, Environment, EnvironmentError, EnvironmentResult, Session, StateId, Theorem, Verdict,
};
pub use policy::{Candidate, NoCandidates, Policy, PolicyError, Proposal, Query};
