//! Search: for now, the trees that earlier searches recorded.
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
mod recorded;

pub use recorded::{RecordedSearch, TrajectoryError, read_searches, read_texts};
