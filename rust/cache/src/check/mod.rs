//! The checks of rows: each by itself, and all against one another.

pub(crate) mod equal_rows;
pub(crate) mod norms;
pub(crate) mod row_check;
pub(crate) mod sketch;
