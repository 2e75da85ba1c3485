//! Which format many states are in.

use super::{StateFormat, StateFormatError, convert, detect};

/// The format from which to convert states to another.
///
/// If `given`, that one. Otherwise what the texts show, and only where it makes no difference what they do
/// not show: every text must be converted to the same from each format that it can be in. BurnQED's form
/// counts only if all texts can be in it. Then Lean's form, the most general, stands for all. Texts that are
/// no proof states are left to [`convert`].
///
/// A text does not show what was dropped from it. So among states in Lean's form some in BurnQED's form are
/// not noticed: convert them from files of their own, and give their format.
///
/// # Errors
/// [`StateFormatError::Ambiguous`] with a state that would be converted differently;
/// [`StateFormatError::NoSource`] if `as-given` is given.
pub fn source_format<'a>(
    given: Option<StateFormat>,
    to: StateFormat,
    texts: impl Iterator<Item = &'a str> + Clone,
) -> Result<StateFormat, StateFormatError> {
    match given {
        _ if to == StateFormat::AsGiven => return Ok(StateFormat::AsGiven),
        Some(StateFormat::AsGiven) => return Err(StateFormatError::NoSource),
        Some(format) => return Ok(format),
        None => {}
    }
    let mut bare = None;
    let mut all_bare = true;
    for text in texts {
        let mut formats = detect(text);
        if formats.is_empty() {
            continue;
        }
        if formats.contains(&StateFormat::Burnqed) {
            bare = bare.or(Some(text));
            formats.retain(|format| *format != StateFormat::Burnqed);
        } else {
            all_bare = false;
        }
        let mut results = formats.iter().map(|from| convert(text, *from, to));
        let first = results.next();
        if results.any(|other| Some(&other) != first.as_ref()) {
            return Err(ambiguous(to, text));
        }
    }
    match bare {
        Some(text) if all_bare && to != StateFormat::Burnqed => Err(ambiguous(to, text)),
        _ => Ok(StateFormat::Lean),
    }
}

fn ambiguous(to: StateFormat, text: &str) -> StateFormatError {
    const SHOWN: usize = 60;
    let formats: Vec<&str> = detect(text).into_iter().map(StateFormat::name).collect();
    let state = text.chars().take(SHOWN).collect();
    StateFormatError::Ambiguous { to, state, formats: formats.join(" or ") }
}
