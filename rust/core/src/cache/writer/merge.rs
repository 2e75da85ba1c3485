//! All sources of a writer into one file: of each state the row that counts.

use std::path::Path;

use arrow_array::StringArray;
use arrow_array::builder::StringBuilder;
use serde_json::Value;

use super::{CacheWriter, Source};
use crate::cache::error::CacheResult;
use crate::cache::file_writer::FileWriter;
use crate::cache::footer::StateKey;
use crate::cache::row_file::Rows;

impl CacheWriter {
    pub(super) fn merge(&self, path: &Path, provenance: Value) -> CacheResult<()> {
        let mut merged = FileWriter::create(path, self.dim)?;
        for Source { file, first } in &self.sources {
            let mut number = *first;
            file.for_each(|rows| {
                let (states, values) = self.counting(rows, &mut number);
                merged.append(states, values)
            })?;
        }
        let footer = self.footer(merged.rows(), provenance);
        merged.close(&footer)
    }

    /// Those of a source's rows that count for their state.
    fn counting(&self, rows: Rows, number: &mut u64) -> (StringArray, Vec<f32>) {
        let counts = |state: &str, number: u64| {
            self.current.get(&StateKey::of(state)).is_some_and(|current| *current == number)
        };
        let keep: Vec<bool> = rows
            .states
            .iter()
            .flatten()
            .zip(*number..)
            .map(|(state, number)| counts(state, number))
            .collect();
        *number += keep.len() as u64;
        if keep.iter().all(|keep| *keep) {
            return (rows.states, rows.values);
        }
        let mut states = StringBuilder::new();
        let mut values = Vec::new();
        let all = rows.states.iter().flatten().zip(rows.values.chunks(self.dim));
        for ((state, row), _) in all.zip(keep).filter(|(_, keep)| *keep) {
            states.append_value(state);
            values.extend_from_slice(row);
        }
        (states.finish(), values)
    }
}
