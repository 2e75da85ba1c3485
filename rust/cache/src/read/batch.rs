//! What readers of many rows share: room for them, and how bad ones are refused.

use std::path::Path;

use crate::format::bad_row::BadRow;
use crate::format::error::{CacheError, CacheResult};

/// Bad rows that a refusal shows in full.
pub(crate) const EXAMPLES: usize = 3;
/// Rows that one thread gathers at least; fewer are not worth another thread.
pub(crate) const AT_ONCE: usize = 128;

/// Refuses bad rows, given by number and reason, of `rows` that were checked; `text` gives their states.
pub(crate) fn refuse_bad_rows<'a>(
    path: &Path,
    bad: &[(usize, BadRow)],
    rows: usize,
    text: impl Fn(usize) -> &'a str,
) -> CacheResult<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let examples = bad.iter().take(EXAMPLES);
    let examples =
        examples.map(|(row, reason)| format!("row {row} ({}): {reason}", preview(text(*row))));
    let (path, examples) = (path.to_owned(), examples.collect());
    Err(CacheError::BadRows { path, count: bad.len(), rows, examples })
}

/// Refuses memory of another size than so many rows.
pub(crate) fn require_room(count: usize, dim: usize, rows: &[f32]) -> CacheResult<()> {
    if count.checked_mul(dim) == Some(rows.len()) {
        return Ok(());
    }
    let found = rows.len();
    let message = format!("rows hold {found} values, expected {count} rows of {dim}");
    Err(CacheError::Argument(message))
}

/// A state's first line, cut short, for messages.
pub(crate) fn preview(state: &str) -> String {
    const LONGEST: usize = 60;
    let line = state.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(LONGEST).collect();
    let more = if cut.len() < state.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}
