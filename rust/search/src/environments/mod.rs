//! Environments: what applies tactics.

pub mod lean;
pub mod statement;

pub use lean::{LeanEnvironment, LeanOptions};
