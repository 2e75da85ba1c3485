//! Policies: what proposes tactics.

mod goal;
mod recorded;
mod tactics;
mod uniform;

pub use recorded::RecordedPolicy;
pub use tactics::{TacticList, TacticListError};
pub use uniform::UniformPolicy;
