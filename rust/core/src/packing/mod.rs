//! Token sequences to forward passes.

mod padded;

pub use padded::{PlanError, plan_padded};
