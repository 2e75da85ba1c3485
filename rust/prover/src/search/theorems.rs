//! Files of theorems.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, bail};
use ebm_cache::storage;
use ebm_search::environments::lean_file;
use ebm_search::search::Theorem;
use serde_json::Value;

/// Some editors put it before UTF-8 text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The theorems of a file: of a `.lean` file those that it states, of any other JSON lines with
/// `theorem_name` (or `name`) and `statement`; without a statement the environment must know the name.
pub(super) fn read_theorems(path: &Path) -> anyhow::Result<Vec<Theorem>> {
    let name = path.display();
    let bytes = storage::read_file(path)?.with_context(|| format!("{name}: no such file"))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{name}: is not UTF-8 text\nhint: save the file as UTF-8"))?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
    let found = if path.extension().is_some_and(|ending| ending == "lean") {
        lean_file::theorems(text).with_context(|| name.to_string())?
    } else {
        json_lines(text).with_context(|| name.to_string())?
    };
    let mut theorems = Vec::new();
    let mut names = HashSet::new();
    for (line, theorem) in found {
        if !names.insert(theorem.name.clone()) {
            bail!("{name}: line {line}: theorem {:?} stands there twice", theorem.name);
        }
        theorems.push(theorem);
    }
    if theorems.is_empty() {
        bail!("{name}: holds no theorem");
    }
    Ok(theorems)
}

fn json_lines(text: &str) -> anyhow::Result<Vec<(usize, Theorem)>> {
    let mut found = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let theorem = json_line(text).with_context(|| format!("line {line}"))?;
        found.extend(theorem.map(|theorem| (line, theorem)));
    }
    Ok(found)
}

fn json_line(line: &str) -> anyhow::Result<Option<Theorem>> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(line)?;
    let field = |name: &str| value.get(name).filter(|value| !value.is_null());
    let name = field("theorem_name").or_else(|| field("name")).and_then(Value::as_str);
    let name = name.context("is no object with a text \"theorem_name\"")?;
    if name.is_empty() {
        bail!("\"theorem_name\" is empty");
    }
    let theorem = Theorem::named(name);
    Ok(Some(match field("statement") {
        None => theorem,
        Some(Value::String(statement)) if !statement.trim().is_empty() => {
            theorem.with_statement(statement.trim())
        }
        Some(_) => bail!("\"statement\" is no text, or empty"),
    }))
}
