//! Features of dependencies that several builds share, and nothing else.
//!
//! Cargo unifies features only over the packages of one build, so the extension, the prover and the
//! tests would each compile `parquet`, `arrow` and `reqwest` again for a feature that some crate
//! below them has in one build and not in the other. With this crate in each, they are compiled
//! once.
