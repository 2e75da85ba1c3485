//! Files of states.

use std::path::Path;

use anyhow::{Context, bail};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use ebm_encode::cache::storage;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

const COLUMN: &str = "state_pp";

/// The states of a file: of the column `state_pp` of a `.parquet` file, of the field `state_pp` of
/// each line of a `.jsonl` file (or of a line that is a string), or the one text of any other file.
pub(crate) fn read_states(path: &Path) -> anyhow::Result<Vec<String>> {
    let name = || path.display().to_string();
    let states = match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => read_parquet(path).with_context(name)?,
        Some("jsonl" | "ndjson") => read_lines(path).with_context(name)?,
        _ => vec![read_text(path).with_context(name)?],
    };
    let states: Vec<String> = states.into_iter().filter(|state| !state.is_empty()).collect();
    if states.is_empty() {
        bail!("{}: holds no state", path.display());
    }
    Ok(states)
}

fn read_parquet(path: &Path) -> anyhow::Result<Vec<String>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(storage::open(path)?)?;
    if builder.schema().column_with_name(COLUMN).is_none() {
        bail!("has no column {COLUMN:?}");
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), [COLUMN]);
    let mut states = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let column = batch.column(0);
        let texts: Vec<Option<&str>> = if let Some(texts) = column.as_string_opt::<i32>() {
            texts.iter().collect()
        } else if let Some(texts) = column.as_string_opt::<i64>() {
            texts.iter().collect()
        } else {
            bail!("column {COLUMN:?} is {}, expected text", column.data_type());
        };
        states.extend(texts.into_iter().flatten().map(str::to_owned));
    }
    Ok(states)
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = storage::read_file(path)?.context("no such file")?;
    Ok(String::from_utf8(bytes)?)
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text(path)?;
    let mut states = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
        let Some(state) = value.as_str().or_else(|| value.get(COLUMN)?.as_str()) else {
            bail!("line {}: is neither a string nor an object with a text {COLUMN:?}", number + 1);
        };
        states.push(state.to_owned());
    }
    Ok(states)
}
