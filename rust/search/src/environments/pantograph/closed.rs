//! Statements as closed types.

/// The type that a statement says: `(p : Prop) (h : p) : p` becomes `∀ (p : Prop) (h : p), p`; what is a
/// type already stays as it is.
pub(super) fn closed_type(statement: &str) -> String {
    let statement = statement.trim();
    let mut rest = statement;
    while let Some(after) = after_binder(rest) {
        rest = after.trim_start();
    }
    match rest.strip_prefix(':') {
        Some(kind) if rest.len() == statement.len() => kind.trim().to_owned(),
        Some(kind) => {
            let binders = statement[..statement.len() - rest.len()].trim_end();
            format!("∀ {binders}, {}", kind.trim())
        }
        None => statement.to_owned(),
    }
}

/// What follows the bracket that closes a binder at the start of `text`.
fn after_binder(text: &str) -> Option<&str> {
    if !text.starts_with(['(', '{', '[', '⦃']) {
        return None;
    }
    let mut depth = 0_usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '{' | '[' | '⦃' | '⟨' => depth += 1,
            ')' | '}' | ']' | '⦄' | '⟩' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[at + letter.len_utf8()..]);
        }
    }
    None
}
