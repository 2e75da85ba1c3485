//! Environments: what applies tactics.

pub mod lean;
pub mod lean_file;
pub mod pantograph;
mod replay;
pub mod statement;
mod watch;

pub use lean::{LeanEnvironment, LeanOptions};
pub use pantograph::{PantographEnvironment, PantographOptions};
pub use replay::ReplayEnvironment;
