//! Search: for now, the trees that earlier searches recorded.

mod recorded;

pub use recorded::{RecordedSearch, TrajectoryError, read_searches};
