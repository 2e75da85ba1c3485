//! Tactics from a list, filled in for each state.

use std::fmt;
use std::sync::Arc;

use super::goal::{Goal, main_symbol};
use crate::search::{Candidate, Control, NoCandidates, Policy, PolicyError, Proposal, Query};

/// The default list, for core Lean: no `simp`, no library.
const DEFAULT: &str = include_str!("tactics.txt");
const HYPOTHESIS: &str = "{h}";
const NEW: &str = "{new}";
/// Types whose members are no proofs and no values to use.
const SORTS: [&str; 3] = ["Prop", "Type", "Sort"];

/// Proposes the tactics of a list, all with the same log-probability: what a search does without a model.
#[derive(Debug, Clone)]
pub struct TacticList {
    tactics: Vec<Template>,
    most: usize,
}

/// A line of a list.
#[derive(Debug, Clone, Default)]
struct Template {
    tactic: String,
    /// Main symbols of the target; any if empty.
    goal: Vec<String>,
    /// Main symbols of the hypothesis; any if empty.
    hypothesis: Vec<String>,
}

/// Why a list of tactics cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct TacticListError {
    line: usize,
    reason: String,
}

impl Default for TacticList {
    /// Tactics of core Lean: logic, equality, induction over `Nat`.
    fn default() -> Self {
        Self::parse(DEFAULT).expect("the list of this crate is well-formed, which a test checks")
    }
}

impl TacticList {
    /// Reads a list: a tactic per line, with `{h}` for each hypothesis and `{new}` for unused names; after
    /// ` -- ` perhaps `goal` or `h` with the main symbols for which the line counts. Lines that begin
    /// with `#` are comments.
    ///
    /// # Errors
    /// [`TacticListError`], with the line.
    pub fn parse(text: &str) -> Result<Self, TacticListError> {
        let mut tactics = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| TacticListError { line: number + 1, reason };
            tactics.push(template(line).map_err(wrong)?);
        }
        if tactics.is_empty() {
            return Err(TacticListError { line: 1, reason: "there is no tactic".to_owned() });
        }
        Ok(Self { tactics, most: usize::MAX })
    }

    /// The same with at most this many candidates per state.
    #[must_use]
    pub const fn with_most(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// The tactics for a state, distinct, in the order of the list.
    #[must_use]
    pub fn tactics(&self, state: &str) -> Vec<Arc<str>> {
        let goal = Goal::first_of(state);
        let symbol = main_symbol(&goal.target);
        let mut found: Vec<Arc<str>> = Vec::new();
        let mut add = |tactic: String| {
            if !found.iter().any(|known| **known == *tactic) {
                found.push(tactic.into());
            }
        };
        for template in &self.tactics {
            if !counts(&template.goal, symbol) {
                continue;
            }
            if !template.tactic.contains(HYPOTHESIS) {
                add(with_new_names(&template.tactic, state));
                continue;
            }
            for (name, kind) in goal.hypotheses.iter().rev() {
                let sort = SORTS.iter().any(|sort| kind.starts_with(sort));
                if !sort && counts(&template.hypothesis, main_symbol(kind)) {
                    add(with_new_names(&template.tactic.replace(HYPOTHESIS, name), state));
                }
            }
        }
        found.truncate(self.most);
        found
    }
}

fn template(line: &str) -> Result<Template, String> {
    let (tactic, conditions) = line.split_once(" -- ").unwrap_or((line, ""));
    let mut template = Template { tactic: tactic.trim().to_owned(), ..Template::default() };
    for condition in conditions.split(';').filter(|condition| !condition.trim().is_empty()) {
        let mut words = condition.split_whitespace();
        let symbols = match words.next() {
            Some("goal") => &mut template.goal,
            Some("h") => &mut template.hypothesis,
            other => {
                let word = other.unwrap_or_default();
                return Err(format!("after -- stands {word:?}, expected goal or h"));
            }
        };
        symbols.extend(words.map(str::to_owned));
        if symbols.is_empty() {
            return Err("a condition without symbols".to_owned());
        }
    }
    if !template.hypothesis.is_empty() && !template.tactic.contains(HYPOTHESIS) {
        return Err("a condition on h, and no {h} in the tactic".to_owned());
    }
    Ok(template)
}

fn counts(symbols: &[String], symbol: &str) -> bool {
    symbols.is_empty() || symbols.iter().any(|known| known == symbol)
}

/// Replaces each `{new}` by a name `h1`, `h2`, ... that is not in the state.
fn with_new_names(tactic: &str, state: &str) -> String {
    let mut names = (1..).map(|number| format!("h{number}")).filter(|name| !has_word(state, name));
    let mut parts = tactic.split(NEW);
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for (part, name) in parts.zip(&mut names) {
        filled.push_str(&name);
        filled.push_str(part);
    }
    filled
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |symbol: char| symbol.is_alphanumeric() || matches!(symbol, '_' | '\'' | '✝');
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

impl fmt::Display for TacticList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tactics", self.tactics.len())
    }
}

impl Policy for TacticList {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        _control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        let proposal = |query: &Query<'_>| {
            let tactics = self.tactics(query.state);
            if tactics.is_empty() {
                return Err(NoCandidates("no tactic of the list fits the state".to_owned()));
            }
            let log_prob = -(tactics.len() as f64).ln();
            Ok(tactics.into_iter().map(|tactic| Candidate::new(tactic, log_prob)).collect())
        };
        Ok(queries.iter().map(proposal).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_list_is_read_and_fills_in_names() {
        let state = "p q : Prop\nh : p ∧ q\nh1 : p → q\n⊢ q ∨ p";
        let tactics = TacticList::default().tactics(state);
        let has = |tactic: &str| tactics.iter().any(|known| **known == *tactic);
        assert!(has("left") && has("right") && has("apply h1"));
        assert!(has("cases h with | intro h2 h3 => ?_"), "{tactics:?}");
        assert!(!has("constructor") && !has("cases p with | intro h2 h3 => ?_"));
        assert!(!has("intro h2"), "the goal is a disjunction");
    }

    #[test]
    fn a_wrong_list_is_refused_with_its_line() {
        let refused = TacticList::parse("left\nright -- when ∨").map(|list| list.to_string());
        assert_eq!(
            refused.map_err(|error| error.to_string()),
            Err("line 2: after -- stands \"when\", expected goal or h".to_owned())
        );
        assert!(TacticList::parse("# nothing\n").is_err());
        assert!(TacticList::parse("left -- h ∧").is_err());
    }
}
