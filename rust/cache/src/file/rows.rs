//! Some rows of a file, decoded.

use arrow_array::StringArray;

/// Some consecutive rows of a file.
pub(crate) struct Rows {
    pub(crate) states: StringArray,
    /// Row-major, `states.len() x dim`.
    pub(crate) values: Vec<f32>,
}
