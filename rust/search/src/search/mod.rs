//! Best-first proof search.
//!
//! A [`Search`] takes an [`Environment`], which applies tactics, a [`Policy`], which proposes them, and
//! perhaps a [`Scorer`], which says how good the states are that they lead to. Which state is expanded
//! next is the [`Ranking`]'s matter.

mod control;
mod environment;
mod frontier;
mod graph;
mod many;
mod options;
mod policy;
mod priority;
mod result;
mod run;
mod scoring;
mod timings;

pub use control::{Cancel, Control, Stop};
pub use environment::{
    Applied, Environment, EnvironmentError, EnvironmentResult, Session, StateId, Theorem, Verdict,
};
pub use graph::{GraphState, ProofGraph, Status, Step, Target};
pub use options::{Limits, SearchOptions};
pub use policy::{Candidate, NoCandidates, Policy, PolicyError, Proposal, Query};
pub use priority::Ranking;
pub use result::{Ended, FalseProof, Proof, SearchError, SearchResult};
pub use run::Search;
pub use scoring::{RuleScorer, Scorer, ScorerError, Scores};
pub use timings::{Stage, StageTimes, Timings};
