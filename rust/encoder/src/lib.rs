//! States to embeddings at search time: what an encoder is, and how many callers share one.
//!
//! - An [`Encoder`] writes embeddings into memory that the caller owns, with a [`Report`] for each state.
//! - A [`Coalescer`] puts one encoder behind a queue: requests of many threads or tasks are merged into
//!   batches, every embedding passes the row checks, and every caller gets its own by reference.
//! - A [`CachedEncoder`] puts a [`Cache`](ebm_cache::Cache) in front of that, keeps what was encoded in
//!   memory, and appends it to a file.
//! - `remote::RemoteEncoder` (feature `remote`) is an encoder behind a server.
//!
//! ```
//! use ebm_cache::Identity;
//! use ebm_encoder::{CachedEncoder, CachedEncoderOptions, Encoder, EncoderResult, PromptInfo, Report};
//!
//! /// Counts letters; a model stands here, behind `ebm-embed` for example.
//! struct Letters(Identity);
//!
//! impl Encoder for Letters {
//!     fn dim(&self) -> usize {
//!         2
//!     }
//!
//!     fn identity(&self) -> &Identity {
//!         &self.0
//!     }
//!
//!     fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
//!         for (state, row) in states.iter().zip(rows.chunks_mut(2)) {
//!             row.copy_from_slice(&[state.chars().count() as f32, state.matches('=').count() as f32]);
//!         }
//!         Ok(states.iter().map(|state| Ok(PromptInfo::new(state.chars().count()))).collect())
//!     }
//! }
//!
//! # let identity = Identity::from_json(r#"{"weights": "w", "config": "c", "tokenizer": "t",
//! #     "template": "{state}", "special_tokens": "tokenizer-default-once", "pooling": "mean",
//! #     "layer": -1, "dtype": "float32", "quantization": "none", "max_length": null,
//! #     "truncation": "none"}"#)?;
//! let encoder = CachedEncoder::new(Letters(identity), None, CachedEncoderOptions::default())?;
//! for answer in encoder.encode(&["⊢ 1 = 1", "⊢ True", "⊢ 1 = 1"])? {
//!     let embedding = answer?; // or why there is none: a `NoEmbedding`
//!     assert_eq!(embedding.len(), 2);
//! }
//! assert_eq!(encoder.statistics().encoder.encoded, 2, "equal states are encoded once");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
#[cfg(feature = "remote")]
pub mod remote;
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
    /// Length of every embedding.
    fn dim(&self) -> usize;

    /// Everything that changes the embeddings beyond rounding.
    fn identity(&self) -> &Identity;

    /// Writes the embeddings of some states, one after the other, and reports each.
    ///
    /// `rows` has `states.len() * dim` values. The embedding of a state whose report is an error
    /// has no meaning and must not be used. Returns one report per state.
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

/// Refuses a buffer that does not hold an embedding per state.
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
