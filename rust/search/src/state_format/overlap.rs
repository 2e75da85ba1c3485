//! How many states of one source another has, as they are and converted.

use std::collections::HashSet;
use std::fmt;

use super::{StateFormat, StateFormatError, convert, source_format};

/// States of an input that a cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overlap {
    /// Distinct states of the input.
    pub states: usize,
    /// How many of them the cache holds as they are.
    pub found: usize,
    /// The format in which it holds the most, if these are more than `found`.
    pub converted: Option<Converted>,
}

/// How many states a cache holds after they were converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// The format that they are in.
    pub from: StateFormat,
    /// Whether that must be said, since the texts do not show it.
    pub say_from: bool,
    /// The format that they were converted to.
    pub to: StateFormat,
    /// How many states the cache holds then, by their number before.
    pub found: usize,
}

/// Counts the states of an input that a cache holds, as they are and in every other format.
///
/// # Arguments
/// - `texts`: the states; equal ones count once.
/// - `from`: the format that they are in, if that is known.
/// - `contains`: whether the cache holds a state.
pub fn overlap(
    texts: &[&str],
    from: Option<StateFormat>,
    contains: impl Fn(&str) -> bool,
) -> Overlap {
    let mut seen = HashSet::new();
    let texts: Vec<&str> = texts.iter().copied().filter(|text| seen.insert(*text)).collect();
    let found = texts.iter().filter(|text| contains(text)).count();
    let mut best: Option<Converted> = None;
    if found < texts.len() {
        for (from, say_from, to) in ways(&texts, from) {
            let there = |text: &&&str| convert(text, from, to).is_ok_and(|text| contains(&text));
            let there = texts.iter().filter(there).count();
            if there > best.map_or(found, |best| best.found) {
                best = Some(Converted { from, say_from, to, found: there });
            }
        }
    }
    Overlap { states: texts.len(), found, converted: best }
}

/// From which format to which, and whether the first must be said.
fn ways(texts: &[&str], from: Option<StateFormat>) -> Vec<(StateFormat, bool, StateFormat)> {
    let from = from.filter(|format| *format != StateFormat::AsGiven);
    let ways = StateFormat::PRINTED.into_iter().flat_map(|to| {
        match source_format(from, to, texts.iter().copied()) {
            Ok(source) => vec![(source, from.is_some(), to)],
            Err(StateFormatError::Ambiguous { .. }) => {
                vec![(StateFormat::Lean, true, to), (StateFormat::Pantograph, true, to)]
            }
            Err(_) => Vec::new(),
        }
    });
    ways.collect()
}

impl Overlap {
    /// What to do about it, if converting finds more states.
    ///
    /// # Arguments
    /// - `cache`: the name of the cache.
    /// - `held`: the format that the cache's identity says it is in.
    #[must_use]
    pub fn hint(&self, cache: &str, held: StateFormat) -> Option<String> {
        let Converted { from, say_from, to, .. } = self.converted?;
        let to_option = to.option();
        let states_in =
            if say_from { format!(" --states-in {}", from.option()) } else { String::new() };
        if held == to {
            return Some(format!("hint: --state-format {to_option}{states_in}"));
        }
        Some(format!(
            "hint: {cache} is in {to_option} form, but does not say so. Make a cache that does, with \
             `ebm-encode encode --cache {cache} --state-format {to_option}{states_in}`, which reuses its \
             embeddings; then use that one with --state-format {to_option}{states_in}"
        ))
    }
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, found, converted } = self;
        let plural = if *states == 1 { "state is" } else { "states are" };
        write!(f, "{found} of {states} {plural} in the cache as printed")?;
        if let Some(Converted { to, found, .. }) = converted {
            write!(f, "; {found} would be, converted to {} form", to.option())?;
        }
        Ok(())
    }
}
