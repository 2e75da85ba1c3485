//! Files of theorems.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, bail};
use ebm_cache::storage;
use ebm_search::search::Theorem;
use serde_json::Value;

/// Some editors put it before UTF-8 text.
const BYTE_ORDER_MARK: char = '\u{feff}';
const KEYWORDS: [&str; 2] = ["theorem ", "lemma "];

/// The theorems of a file: of a `.lean` file its lines `theorem NAME STATEMENT`, of any other JSON lines with
/// `theorem_name` (or `name`) and `statement`; without a statement the environment must know the name.
pub(super) fn read_theorems(path: &Path) -> anyhow::Result<Vec<Theorem>> {
    let name = path.display();
    let bytes = storage::read_file(path)?.with_context(|| format!("{name}: no such file"))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{name}: is not UTF-8 text\nhint: save the file as UTF-8"))?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
    let is_lean = path.extension().is_some_and(|ending| ending == "lean");
    let mut theorems = Vec::new();
    let mut names = HashSet::new();
    for (number, line) in text.lines().enumerate() {
        let found = if is_lean { lean_line(line) } else { json_line(line) };
        let found = found.with_context(|| format!("{name}: line {}", number + 1))?;
        let Some(theorem) = found else { continue };
        if !names.insert(theorem.name.clone()) {
            bail!("{name}: line {}: theorem {:?} stands there twice", number + 1, theorem.name);
        }
        theorems.push(theorem);
    }
    if theorems.is_empty() {
        bail!("{name}: holds no theorem");
    }
    Ok(theorems)
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

/// A line `theorem NAME BINDERS : TYPE`, perhaps with `:=` and a proof, which is not read.
fn lean_line(line: &str) -> anyhow::Result<Option<Theorem>> {
    let Some(rest) = KEYWORDS.iter().find_map(|keyword| line.strip_prefix(keyword)) else {
        return Ok(None);
    };
    let rest = rest.split(":=").next().unwrap_or_default().trim();
    let end = rest.find(|symbol: char| symbol.is_whitespace() || "({[:⦃".contains(symbol));
    let (name, statement) = rest.split_at(end.context("a theorem without a statement")?);
    let statement = statement.trim();
    if name.is_empty() || statement.is_empty() {
        bail!("a theorem without a name or a statement");
    }
    let statement = statement.strip_prefix(':').map_or(statement, str::trim);
    Ok(Some(Theorem::named(name).with_statement(statement)))
}
