//! What an encoder's forward pass does on the CPU: token sequences packed into passes, and attention over
//! the trie of their shared prefixes.
//!
//! ```
//! use ebm_kernels::packing::Sequences;
//!
//! // Two sequences, end to end: [1, 2, 3] and [1, 2, 4].
//! let sequences = Sequences::new(&[1, 2, 3, 1, 2, 4], &[0, 3, 6])?;
//! assert_eq!(sequences.len(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attention;
pub mod packing;
