//! Environments: what applies tactics.

#[cfg(unix)] // its child processes are ended by their process group
pub mod pantograph;
mod replay;

pub use replay::ReplayEnvironment;
