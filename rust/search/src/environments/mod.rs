//! Environments: what applies tactics.

mod replay;

pub use replay::ReplayEnvironment;
