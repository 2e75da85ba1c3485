//! What can be read off a printed goal.

/// The first goal of a state.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Goal<'a> {
    /// Names and types of the hypotheses, in their order. Names that cannot be written are not among them.
    pub(super) hypotheses: Vec<(&'a str, String)>,
    /// The target.
    pub(super) target: String,
}

impl<'a> Goal<'a> {
    /// Reads a state as Lean or Pantograph prints it; an empty goal if it is none.
    pub(super) fn first_of(state: &'a str) -> Self {
        let mut goal = Self::default();
        let mut entry: Option<(&'a str, String)> = None;
        for line in state.lines().take_while(|line| !line.is_empty()) {
            if line.starts_with(' ') {
                // Lean breaks long lines and indents the rest.
                let text = if goal.target.is_empty() {
                    match &mut entry {
                        Some((_, kind)) => kind,
                        None => continue,
                    }
                } else {
                    &mut goal.target
                };
                text.push(' ');
                text.push_str(line.trim_start());
                continue;
            }
            goal.take(entry.take());
            if let Some(target) = line.strip_prefix("⊢ ") {
                target.clone_into(&mut goal.target);
            } else if let Some((names, kind)) = line.split_once(" : ") {
                entry = Some((names, kind.to_owned()));
            }
        }
        goal.take(entry);
        goal
    }

    fn take(&mut self, entry: Option<(&'a str, String)>) {
        let Some((names, kind)) = entry else { return };
        let kind = without_value(&kind);
        let usable = names.split(' ').filter(|name| !name.is_empty() && !name.contains('✝'));
        self.hypotheses.extend(usable.map(|name| (name, kind.to_owned())));
    }
}

/// A type without the value that follows that of a `let`.
fn without_value(kind: &str) -> &str {
    let mut depth = 0_i32;
    for (at, symbol) in kind.char_indices() {
        depth += nesting(symbol);
        if depth == 0 && kind[at..].starts_with(" := ") {
            return &kind[..at];
        }
    }
    kind
}

/// The symbol that binds least in a term: `∀`, `∃`, `→`, `∧` and so on; the term itself if there is none.
/// An application is `p`.
pub(super) fn main_symbol(term: &str) -> &str {
    // From the one that binds least; precedences as in Lean's prelude.
    const SYMBOLS: [&[&str]; 5] = [&["↔"], &["→"], &["∨"], &["∧"], &["=", "≠", "≤", "<", "≥", ">"]];
    let mut found: Option<(usize, &str)> = None;
    let mut depth = 0_i32;
    for (at, symbol) in term.char_indices() {
        depth += nesting(symbol);
        if depth != 0 {
            continue;
        }
        let here = &term[at..at + symbol.len_utf8()];
        if matches!(symbol, '∀' | '∃' | 'λ') {
            // All that follows is under the binder.
            return found.map_or(here, |(_, symbol)| symbol);
        }
        let level = SYMBOLS.iter().position(|symbols| symbols.contains(&here));
        if let Some(level) = level
            && found.is_none_or(|(known, _)| level < known)
        {
            found = Some((level, here));
        }
    }
    match found {
        Some((_, symbol)) => symbol,
        None if term.starts_with('¬') => "¬",
        None if term.contains(' ') => "p",
        None => term,
    }
}

fn nesting(symbol: char) -> i32 {
    match symbol {
        '(' | '[' | '{' | '⟨' => 1,
        ')' | ']' | '}' | '⟩' => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_symbol_that_binds_least_is_found() {
        for (term, symbol) in [
            ("p ∧ q → r", "→"),
            ("(p → q) ∧ r", "∧"),
            ("∀ (x : Nat), x = x → p", "∀"),
            ("p ∧ ∀ x, q x → r", "∧"),
            ("¬p", "¬"),
            ("¬p ∨ q", "∨"),
            ("p ↔ q → r", "↔"),
            ("f (a → b) = c", "="),
            ("∃ y, C y ∨ A y", "∃"),
            ("Nat", "Nat"),
            ("S x", "p"),
        ] {
            assert_eq!(main_symbol(term), symbol, "{term}");
        }
    }

    #[test]
    fn a_goal_is_read_as_lean_prints_it() {
        let state = "case inl\np q : Prop\nh : p ∧\n    q\nh✝ : q\nx : Nat := 3\n⊢ q ∧\n  p\n\np : Prop\n⊢ p";
        let goal = Goal::first_of(state);
        let names: Vec<&str> = goal.hypotheses.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["p", "q", "h", "x"]);
        assert_eq!(goal.hypotheses[2].1, "p ∧ q");
        assert_eq!(goal.hypotheses[3].1, "Nat");
        assert_eq!(goal.target, "q ∧ p");
    }
}
