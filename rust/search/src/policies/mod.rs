//! Policies: what proposes tactics.

mod recorded;
mod uniform;

pub use recorded::RecordedPolicy;
pub use uniform::UniformPolicy;
