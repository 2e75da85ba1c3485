//! States to rows at search time: what an encoder is, and how many callers share one.
//!
//! An [`Encoder`] turns states into rows in memory that the caller owns, with a [`Report`] for
//! each. A [`Coalescer`] puts one encoder behind a queue: requests of many threads or tasks are
//! merged into batches, every row passes the row checks, and every caller gets its rows by reference
//! into the batch's memory. A [`CachedEncoder`] puts an [`EmbeddingCache`](ebm_cache::EmbeddingCache) in front of that.

mod appender;
mod appending;
mod cached;
mod checks;
mod coalescer;
mod embedding;
mod error;
mod jobs;
mod keep;
mod memory;
mod options;
mod queue;
mod statistics;
#[cfg(feature = "test-util")]
mod test_encoder;
mod wait;
mod worker;

pub use cached::{CachedAnswer, CachedEmbedding, CachedEncoder};
pub use coalescer::{Coalescer, Pending};
pub use embedding::{Answer, Embedding, NoEmbedding, PromptInfo, Report, TokenDigest};
pub use error::{EncoderError, EncoderResult};

pub use options::{CachedEncoderOptions, CoalescerOptions};
pub use statistics::{CachedEncoderStatistics, CoalescerStatistics};
#[cfg(feature = "test-util")]
pub use test_encoder::TestEncoder;

use std::sync::Arc;

use ebm_cache::Identity;

/// Turns states into embeddings.
pub trait Encoder: Send + Sync {
    /// Length of every row.
    fn dim(&self) -> usize;

    /// Everything that changes the rows beyond rounding.
    fn identity(&self) -> &Identity;

    /// Writes the embeddings of some states, one after the other, and reports each.
    ///
    /// `rows` has `states.len() * dim` values. The row of a state whose report is an error has no meaning
    /// and must not be used. Returns one report per state.
    ///
    /// # Errors
    /// [`EncoderError::Failed`] where nothing can be said of single states, and
    /// [`EncoderError::Argument`] if `rows` has another length.
    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>>;

    /// Runs something that blocks a caller's thread until this encoder has worked on another.
    ///
    /// An encoder that needs a lock which callers may hold, as Python's, gives it up meanwhile: the
    /// two would wait for each other without end.
    fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
        wait();
    }
}

macro_rules! encoder_by_reference {
    ($($kind:ty),*) => {$(
        impl<E: Encoder + ?Sized> Encoder for $kind {
            fn dim(&self) -> usize {
                (**self).dim()
            }

            fn identity(&self) -> &Identity {
                (**self).identity()
            }

            fn encode_into(
                &self,
                states: &[&str],
                rows: &mut [f32],
            ) -> EncoderResult<Vec<Report>> {
                (**self).encode_into(states, rows)
            }

            fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
                (**self).block_on(wait);
            }
        }
    )*};
}

encoder_by_reference!(Box<E>, Arc<E>, &E);

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
