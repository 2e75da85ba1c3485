//! Search: scores of proof states, and the trees that earlier searches recorded.
//!
//! - An [`EnergyHead`] is a small network over embeddings, read from the file that
//!   `ebm-encode train-head` wrote. Its energy is lower for better states; the score is minus the energy.
//! - A [`ValueScorer`] turns states into scores: embeddings of a
//!   [`CachedEncoder`](ebm_encoder::CachedEncoder), through a head of the same encoder.
//! - [`read_searches`] reads recorded searches.
//! - A [`StateFormat`](state_format::StateFormat) is a printed form of proof states; texts are converted
//!   between them.
//!
//! ```
//! use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
//! # use ebm_cache::Identity;
//! # use ebm_encoder::{Encoder, EncoderResult, PromptInfo, Report};
//! use ebm_search::{EnergyHead, Node, Score, ValueScorer};
//! # struct Letters(Identity);
//! # impl Encoder for Letters {
//! #     fn dim(&self) -> usize { 2 }
//! #     fn identity(&self) -> &Identity { &self.0 }
//! #     fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
//! #         for (state, row) in states.iter().zip(rows.chunks_mut(2)) {
//! #             row.copy_from_slice(&[state.chars().count() as f32, 1.0]);
//! #         }
//! #         Ok(states.iter().map(|_| Ok(PromptInfo::new(1))).collect())
//! #     }
//! # }
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("head.safetensors");
//! # let identity = r#"{"weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
//! #     "special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1,
//! #     "dtype": "float32", "quantization": "none", "max_length": null, "truncation": "none"}"#;
//! # let head = format!(r#"{{"identity": {identity},
//! #     "architecture": {{"dims": [2, 1], "activation": "silu", "members": 1}},
//! #     "sign": "energy: lower is better; score = -energy",
//! #     "score_scale": {{"mean": -6, "deviation": 2}}}}"#);
//! # let header = serde_json::json!({
//! #     "__metadata__": {"format": "ebm-encode-head", "version": "1", "head": head},
//! #     "member.0.layer.0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
//! #     "member.0.layer.0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}});
//! # let header = header.to_string();
//! # let values = [1.0_f32, 0.5, 0.0].map(f32::to_le_bytes).concat();
//! # let length = (header.len() as u64).to_le_bytes();
//! # std::fs::write(&path, [&length, header.as_bytes(), &values].concat())?;
//! # let encoder = Letters(Identity::from_json(identity)?);
//! // An encoder as in the documentation of `ebm-encoder`, and a head that was trained on its embeddings.
//! let encoder = CachedEncoder::new(encoder, None, CachedEncoderOptions::default())?;
//! let head = EnergyHead::open(&path)?;
//! assert_eq!(head.energies(&[7.0, 1.0, 9.0, 1.0])?, [7.5, 9.5]);
//!
//! let scorer = ValueScorer::new(encoder, head)?; // refuses an encoder that is not the head's
//! let scores = scorer.score(&[Node::Open("⊢ 1 = 1"), Node::Open("⊢ True"), Node::Finished])?;
//! assert!(scores[1] > scores[0], "this head likes short states");
//! assert!(scores[2] > scores[1], "a finished proof is the best, and is never encoded");
//! assert!(matches!(scores[0], Score::Scored(scored) if scored.score == -scored.energy));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Recorded searches:
//!
//! ```
//! # use std::{fs::File, sync::Arc};
//! # use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("trajectories.parquet");
//! # let batch = RecordBatch::try_from_iter([
//! #     ("theorem_name", Arc::new(StringArray::from(vec!["t"; 3])) as ArrayRef),
//! #     ("state_id", Arc::new(Int64Array::from(vec![0, 1, 2]))),
//! #     ("parent_state_id", Arc::new(Int64Array::from(vec![None, Some(0), Some(0)]))),
//! #     ("state_pp", Arc::new(StringArray::from(vec!["⊢ True ∧ True", "⊢ True", "⊢ 1 = 1"]))),
//! # ])?;
//! # let mut writer = parquet::arrow::ArrowWriter::try_new(File::create(&file)?, batch.schema(), None)?;
//! # writer.write(&batch)?;
//! # writer.close()?;
//! // A theorem's root, then the two states that a tactic made of it.
//! let searches = ebm_search::read_searches(&file)?;
//! assert_eq!(searches[0].requests, [vec!["⊢ True ∧ True"], vec!["⊢ True", "⊢ 1 = 1"]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod columns;
pub mod environments;
mod finite;
mod head;
pub mod policies;
pub mod record;
mod recorded;
mod recording;
mod scorer;
pub mod search;
mod shown;
pub mod state_format;

pub use head::{EnergyHead, HeadError, HeadResult, Mixing, Scale};
pub use recorded::{RecordedSearch, TrajectoryError, read_searches, read_texts};
pub use recording::{DistanceByText, Recording, RecordingCounts};
pub use scorer::{NoScore, Node, Score, Scored, ValueScorer};
