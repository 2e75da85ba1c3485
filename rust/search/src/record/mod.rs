//! Searches as trajectory files, which the next iteration learns from.

mod rows;
mod summary;
mod writer;

pub use rows::trajectory_schema;
pub use summary::{TheoremSummary, read_summaries};
pub use writer::{Existing, TrajectoryWriter};
