//! States to rows at search time: what an encoder is, and how many callers share one.
//!
//! An [`Encoder`] turns states into rows in memory that the caller owns, with a [`RowReport`] for
//! each. A [`Coalescer`] puts one encoder behind a queue: requests of many threads or tasks are
//! merged into batches, every row passes the row checks, and every caller gets its rows by reference
//! into the batch's memory. A [`CachedEncoder`] puts an [`EmbeddingCache`](ebm_cache::EmbeddingCache) in front of that.

mod appender;
mod appending;
mod cached;
mod checks;
mod coalescer;
mod error;
mod fake;
mod keep;
mod memory;
mod queue;
mod row;
mod statistics;
mod wait;
mod worker;

pub use cached::{CachedAnswer, CachedEncoder, CachedEncoderOptions, CachedRow, EncodedRow};
pub use coalescer::{Coalescer, CoalescerOptions, CoalescerStatistics, Pending};
pub use error::{EncoderError, EncoderResult};
pub use fake::FakeEncoder;
pub use row::{Encoded, Row, RowReport, TokenDigest};
pub use statistics::CachedEncoderStatistics;

use ebm_cache::Identity;

/// Turns states into embeddings.
pub trait Encoder: Send + Sync {
    /// Length of every row.
    fn dim(&self) -> usize;

    /// Everything that changes the rows beyond rounding.
    fn identity(&self) -> &Identity;

    /// Writes the rows of some states, one after the other.
    ///
    /// `rows` has `states.len() * dim` values. The row of a state whose report is not
    /// [`RowReport::Ok`] has no meaning and must not be used. Returns one report per state.
    ///
    /// # Errors
    /// [`EncoderError::Failed`] where nothing can be said of single states, and
    /// [`EncoderError::Argument`] if `rows` has another length.
    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<RowReport>>;

    /// Runs something that blocks a caller's thread until this encoder has worked on another.
    ///
    /// An encoder that needs a lock which callers may hold, as Python's, gives it up meanwhile: the
    /// two would wait for each other without end.
    fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
        wait();
    }
}

/// Refuses a buffer that does not hold a row per state.
///
/// # Errors
/// [`EncoderError::Argument`].
pub fn require_room(states: usize, dim: usize, values: usize) -> EncoderResult<()> {
    if states.checked_mul(dim) == Some(values) {
        return Ok(());
    }
    Err(EncoderError::Argument(format!(
        "rows hold {values} values, expected {states} rows of {dim}"
    )))
}
