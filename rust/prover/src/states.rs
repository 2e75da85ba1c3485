//! Files of states.

use std::path::Path;

use anyhow::{Context, bail};
use ebm_cache::storage;
use ebm_search::read_texts;
use serde_json::Value;

const COLUMN: &str = "state_pp";
/// Some editors put it before UTF-8 text; it is part of no state.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The states of a file.
pub(crate) struct States {
    pub(crate) texts: Vec<String>,
    /// Rows or lines whose state is null or empty, as a finished proof's is.
    pub(crate) without_text: usize,
}

/// The states of a file: of the column `state_pp` of a `.parquet` file, of the field `state_pp` of
/// each line of a `.jsonl` file (or of a line that is a string), or the one text of any other file.
pub(crate) fn read_states(path: &Path) -> anyhow::Result<States> {
    let name = || path.display().to_string();
    let found = match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => read_texts(path, COLUMN)?,
        Some("jsonl" | "ndjson") => read_lines(path).with_context(name)?,
        _ => vec![Some(read_text(path).with_context(name)?)],
    };
    let all = found.len();
    let texts: Vec<String> =
        found.into_iter().flatten().filter(|state| !state.is_empty()).collect();
    if texts.is_empty() {
        bail!("{}: holds no state", path.display());
    }
    Ok(States { without_text: all - texts.len(), texts })
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = storage::read_file(path)?.context("no such file")?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].split(|byte| *byte == b'\n').count();
        anyhow::anyhow!("line {line}: is not UTF-8 text\nhint: save the file as UTF-8")
    })?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).map_or_else(|| text.clone(), str::to_owned))
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<Option<String>>> {
    let text = read_text(path)?;
    let mut states = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
        let state = value.get(COLUMN).unwrap_or(&value);
        match (state, value.is_object()) {
            (Value::String(state), _) => states.push(Some(state.clone())),
            (Value::Null, true) => states.push(None),
            _ => bail!(
                "line {}: is neither a string nor an object with a text {COLUMN:?}",
                number + 1
            ),
        }
    }
    Ok(states)
}
