//! What a theorem says, as text.

/// The parts of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The groups of binders in front, `(p : Prop) (h : p)`, or nothing.
    pub binders: &'a str,
    /// The type that is to be proved, within these binders.
    pub target: &'a str,
}

impl<'a> Statement<'a> {
    /// Splits a statement: binders, a colon and a type, or a type. Neither part is checked.
    ///
    /// ```
    /// use ebm_search::environments::statement::Statement;
    /// let split = Statement::split("(p q : Prop) (h : p ∧ q) : q ∧ p");
    /// assert_eq!((split.binders, split.target), ("(p q : Prop) (h : p ∧ q)", "q ∧ p"));
    /// let split = Statement::split("(True ∧ True) → True");
    /// assert_eq!((split.binders, split.target), ("", "(True ∧ True) → True"));
    /// ```
    #[must_use]
    pub fn split(statement: &'a str) -> Self {
        let statement = statement.trim();
        let mut rest = statement;
        while let Some(after) = skip_group(rest) {
            rest = after.trim_start();
        }
        match rest.strip_prefix(':') {
            Some(target) if !target.starts_with('=') => {
                let binders = statement[..statement.len() - rest.len()].trim_end();
                Self { binders, target: target.trim_start() }
            }
            _ => Self { binders: "", target: statement },
        }
    }

    /// The same as one type, with the binders under `∀`.
    ///
    /// ```
    /// use ebm_search::environments::statement::Statement;
    /// assert_eq!(Statement::split("(p : Prop) : p → p").closed(), "∀ (p : Prop), p → p");
    /// assert_eq!(Statement::split("1 = 1").closed(), "1 = 1");
    /// ```
    #[must_use]
    pub fn closed(&self) -> String {
        if self.binders.is_empty() {
            return self.target.to_owned();
        }
        format!("∀ {}, {}", self.binders, self.target)
    }

    /// The statement whose first state is a printed state with one goal: its variables as binders. `None` if
    /// the state has no goal or several, names that cannot be written, or values; or what reads as something
    /// else than was printed: `⋯` for what Lean left out, comments and `sorry`. A state may still mean something
    /// else than the statement, since types are not printed: use [`Theorem::with_first_state`] as well.
    ///
    /// [`Theorem::with_first_state`]: crate::search::Theorem::with_first_state
    ///
    /// ```
    /// use ebm_search::environments::statement::Statement;
    /// let state = "p q : Prop\nh : p ∧\n  q\n⊢ q ∧ p";
    /// let statement = Statement::of_state(state);
    /// assert_eq!(statement.as_deref(), Some("(p q : Prop) (h : p ∧ q) : q ∧ p"));
    /// assert_eq!(Statement::of_state("x : Nat := 1\n⊢ x = 1"), None);
    /// assert_eq!(Statement::of_state("⊢ 1 + 1 = 2\n  -- ∧ False"), None);
    /// ```
    #[must_use]
    pub fn of_state(state: &str) -> Option<String> {
        if ["--", "/-", "⋯", "sorry"].iter().any(|sign| state.contains(sign)) {
            return None;
        }
        let (mut entries, mut target): (Vec<String>, Option<String>) = (Vec::new(), None);
        for line in state.lines() {
            if let Some(rest) = line.strip_prefix(' ') {
                // Lean breaks long lines and indents the rest.
                let last = target.as_mut().or(entries.last_mut())?;
                last.push(' ');
                last.push_str(rest.trim_start());
            } else if target.is_some() || line.is_empty() || line.starts_with("case ") {
                return None;
            } else if let Some(goal) = line.strip_prefix("⊢ ") {
                target = Some(goal.to_owned());
            } else {
                entries.push(line.to_owned());
            }
        }
        let mut statement = String::new();
        for entry in entries {
            let (names, _) = entry.split_once(" : ")?;
            if names.contains('✝') || entry.contains(" := ") {
                return None;
            }
            statement.push('(');
            statement.push_str(&entry);
            statement.push_str(") ");
        }
        Some(format!("{statement}: {}", target?))
    }

    /// The same behind the name of a declaration: `(p : Prop) : p → p`.
    #[must_use]
    pub fn signature(&self) -> String {
        if self.binders.is_empty() {
            return format!(": {}", self.target);
        }
        format!("{} : {}", self.binders, self.target)
    }
}

/// What follows the bracket group that a text starts with.
fn skip_group(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '(' | '[' | '{' | '⦃' => depth += 1,
            ')' | ']' | '}' | '⦄' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return (at > 0).then(|| &text[at + character.len_utf8()..]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> (&str, &str) {
        let Statement { binders, target } = Statement::split(text);
        (binders, target)
    }

    #[test]
    fn statements_are_split_at_the_first_colon_behind_binders() {
        assert_eq!(split("∀ (p : Prop), p → p"), ("", "∀ (p : Prop), p → p"));
        assert_eq!(split(" (p : Prop)\n  (h : p) :\n p "), ("(p : Prop)\n  (h : p)", "p"));
        assert_eq!(split("{α : Type} [Inhabited α] ⦃x : α⦄ : x = x").1, "x = x");
        assert_eq!(split(": True"), ("", "True"));
        assert_eq!(split("(p : Prop) : (q : Prop) → q"), ("(p : Prop)", "(q : Prop) → q"));
        assert_eq!(split("(p ∧ q) ∧ r"), ("", "(p ∧ q) ∧ r"));
        assert_eq!(split("(p ∧ q)"), ("", "(p ∧ q)"));
        assert_eq!(split("(x : Nat) := 1"), ("", "(x : Nat) := 1"));
        assert_eq!(split("(f (x : Nat)) : True"), ("(f (x : Nat))", "True"));
        assert_eq!(split(""), ("", ""));
        assert_eq!(split("(p"), ("", "(p"));
        assert_eq!(split(")("), ("", ")("));
    }

    #[test]
    fn a_state_that_would_be_read_as_another_has_no_statement() {
        for state in [
            "⊢ 1 + 1 = 2\n  -- ∧ False",
            "⊢ 1 + 1 = 2\n  /- ∧ False -/",
            "h : p ⋯\n⊢ q",
            "⊢ f ⋯ = 1",
            "⊢ sorry = 1",
        ] {
            assert_eq!(Statement::of_state(state), None, "{state}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "[()\\[\\]{}⦃⦄:= pα\n]{0,24}") {
            let parts = Statement::split(&text);
            let whole = text.trim();
            prop_assert!(whole.starts_with(parts.binders) && whole.ends_with(parts.target));
            let between = whole.len() - parts.binders.len() - parts.target.len();
            prop_assert!(parts.binders.is_empty() || between > 0);
        }
    }
}
