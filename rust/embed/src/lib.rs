//! The Python encoder inside a Rust process.
//!
//! [`PythonEncoder`] is an [`Encoder`](ebm_encoder::Encoder) that runs a Hugging Face model
//! through the Python package `ebm_encode`, in this process: no server, and no serialisation.
//! [`PythonPolicy`] is a [`Policy`](ebm_search::search::Policy) that has such a model propose tactics.
//!
#![cfg_attr(feature = "interpreter", doc = "```no_run")]
#![cfg_attr(not(feature = "interpreter"), doc = "```text")]
//! use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
//! use ebm_embed::{Interpreter, PythonEncoder, PythonEncoderOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let python = Interpreter::start(None)?; // of VIRTUAL_ENV, or the python3 on PATH
//! let encoder = PythonEncoder::load(python, &PythonEncoderOptions::new("path/to/model"))?;
//! let encoder = CachedEncoder::new(encoder, None, CachedEncoderOptions::default())?;
//! for embedding in encoder.encode(&["n : ℕ\n⊢ n + 0 = n", "⊢ True"])? {
//!     println!("{:?}", embedding.map(|values| values[0]));
//! }
//! # Ok(())
//! # }
//! ```

mod array;
#[cfg(feature = "interpreter")]
mod attached;
#[cfg(feature = "interpreter")]
mod encoder;
#[cfg(feature = "interpreter")]
mod environment;
#[cfg(feature = "interpreter")]
mod error;
mod exception;
#[cfg(feature = "interpreter")]
mod interpreter;
#[cfg(feature = "interpreter")]
mod log;
mod object;
#[cfg(feature = "interpreter")]
mod options;
#[cfg(feature = "interpreter")]
mod policy;
#[cfg(feature = "interpreter")]
mod policy_options;
#[cfg(feature = "interpreter")]
mod signals;

#[cfg(feature = "interpreter")]
pub use encoder::{PythonEncoder, PythonTime};
#[cfg(feature = "interpreter")]
pub use environment::{Environment, FoundBy};
#[cfg(feature = "interpreter")]
pub use error::EmbedError;
pub use exception::PythonException;
#[cfg(feature = "interpreter")]
pub use interpreter::Interpreter;
pub use object::ObjectEncoder;
#[cfg(feature = "interpreter")]
pub use options::{PythonEncoderOptions, PythonServer};
#[cfg(feature = "interpreter")]
pub use policy::PythonPolicy;
#[cfg(feature = "interpreter")]
pub use policy_options::{Decoding, PythonPolicyOptions};

/// The Python version this crate is built for, as `3.11`. Another one is refused.
#[cfg(feature = "interpreter")]
pub const PYTHON_VERSION: &str = env!("EBM_ENCODE_PYTHON");

/// The version of the Python package `ebm-encode` this crate is built for. Another one is refused.
#[cfg(feature = "interpreter")]
pub const PACKAGE_VERSION: &str = env!("CARGO_PKG_VERSION");
