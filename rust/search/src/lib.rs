//! Search: for now, the trees that earlier searches recorded.

mod columns;
mod recorded;

pub use recorded::{RecordedSearch, TrajectoryError, read_searches, read_texts};
