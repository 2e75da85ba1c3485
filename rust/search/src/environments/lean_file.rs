//! The theorems of a `.lean` file.

use crate::search::Theorem;

/// What a file holds that is not understood. Nothing of it may be skipped: a statement that is cut short is
/// another statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LeanFileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// Words that start a theorem.
const THEOREMS: [&str; 2] = ["theorem", "lemma"];
/// Words that may stand before them and do not change what a theorem says.
const MODIFIERS: [&str; 5] = ["private", "protected", "nonrec", "noncomputable", "public"];
/// Words that bind a value in a statement, so that the next `:=` is theirs.
const BINDERS: [&str; 6] = ["let", "have", "letI", "haveI", "let_fun", "set"];
/// Words that start other commands, where they come first in a line.
const COMMANDS: [&str; 29] = [
    "abbrev",
    "alias",
    "attribute",
    "axiom",
    "class",
    "def",
    "deriving",
    "elab",
    "end",
    "example",
    "export",
    "import",
    "inductive",
    "instance",
    "local",
    "macro",
    "macro_rules",
    "mutual",
    "namespace",
    "notation",
    "opaque",
    "partial",
    "section",
    "structure",
    "syntax",
    "universe",
    "unsafe",
    "variable",
    "variables",
];
/// The same, but these may start a line of a proof too unless it is not indented.
const COMMANDS_OR_TACTICS: [&str; 3] = ["open", "set_option", "include"];

/// The theorems of a `.lean` file with the lines in which they start, whose proofs are not read.
///
/// A theorem is `theorem NAME BINDERS : TYPE` or `lemma …`, over any number of lines, up to its `:=` or the next
/// theorem; attributes and modifiers may stand before it. A statement keeps its text but for comments.
///
/// # Errors
/// [`LeanFileError`] for anything else, since a theorem may depend on it: commands such as `import`, `open`
/// and `variable`, which belong into the header of the Lean that is used; universe parameters; proofs by `|`
/// or `where`.
///
/// ```
/// use ebm_search::environments::lean_file::theorems;
/// let found = theorems("/-- A note. -/\n@[simp] theorem foo (n : Nat) :\n    n = n := by rfl").unwrap();
/// assert_eq!(found[0].0, 2);
/// assert_eq!(found[0].1.name, "foo");
/// assert_eq!(found[0].1.statement.as_deref(), Some("(n : Nat) :\n    n = n"));
/// assert!(theorems("open Nat").is_err());
/// ```
pub fn theorems(text: &str) -> Result<Vec<(usize, Theorem)>, LeanFileError> {
    let mut tokens = Tokens { rest: text, line: 1, fresh: true, column: 0 };
    let mut found = Vec::new();
    let mut next = tokens.next()?;
    while let Some(token) = next {
        let word = token.text;
        if word == "@[" {
            skip_attribute(&mut tokens, token.line)?;
            next = tokens.next()?;
        } else if MODIFIERS.contains(&word) || token.is_comment() {
            next = tokens.next()?;
        } else if THEOREMS.contains(&word) {
            let theorem;
            (theorem, next) = read_theorem(&mut tokens, token.line)?;
            found.push((token.line, theorem));
        } else {
            let hint =
                "hint: leave it out; what theorems need is the header of the Lean that proves them";
            return Err(wrong(token.line, format!("{word:?} starts no theorem\n{hint}")));
        }
    }
    Ok(found)
}

fn wrong(line: usize, reason: impl Into<String>) -> LeanFileError {
    LeanFileError { line, reason: reason.into() }
}

fn skip_attribute(tokens: &mut Tokens<'_>, line: usize) -> Result<(), LeanFileError> {
    let mut depth = 1_usize;
    while let Some(token) = tokens.next()? {
        match token.text {
            "[" | "@[" | "(" | "{" => depth += 1,
            "]" | ")" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Err(wrong(line, "an attribute is not closed"))
}

/// A theorem from its name on, and the token behind it.
fn read_theorem<'a>(
    tokens: &mut Tokens<'a>,
    line: usize,
) -> Result<(Theorem, Option<Token<'a>>), LeanFileError> {
    let name = match tokens.next_but_comments()? {
        Some(token) if token.is_name() => token.text,
        _ => return Err(wrong(line, "a theorem without a name")),
    };
    if tokens.rest.starts_with(".{") {
        let reason = format!(
            "theorem {name:?} has universe parameters, which are not supported\nhint: leave them out, and write \
             `Type _` or `Sort _` for a type of any universe"
        );
        return Err(wrong(line, reason));
    }
    let (statement, mut next) = read_statement(tokens, line, name)?;
    let own = statement.trim();
    let own = own.strip_prefix(':').map_or(own, str::trim);
    if own.is_empty() {
        return Err(wrong(line, format!("theorem {name:?} has no statement")));
    }
    if next.as_ref().is_some_and(|token| token.text == ":=") {
        next = tokens.next()?;
        while next.as_ref().is_some_and(|token| !token.starts_command()) {
            next = tokens.next()?;
        }
    }
    Ok((Theorem::named(name).with_statement(own), next))
}

/// A statement, and the token behind it: `:=`, the start of a command, or the end.
fn read_statement<'a>(
    tokens: &mut Tokens<'a>,
    line: usize,
    name: &str,
) -> Result<(String, Option<Token<'a>>), LeanFileError> {
    let mut statement = String::new();
    let mut open: Vec<&str> = Vec::new();
    let mut bound = 0_usize;
    loop {
        let before = tokens.rest;
        let token = tokens.next()?;
        let text = token.as_ref().map_or("", |token| token.text);
        let space = &before[..before.len() - tokens.rest.len() - text.len()];
        let ends = token.as_ref().is_none_or(Token::starts_command);
        match (text, open.is_empty()) {
            (_, true) if ends => return Ok((statement, token)),
            _ if ends => {
                let last = open.last().unwrap_or(&"");
                return Err(wrong(line, format!("theorem {name:?}: {last} is missing")));
            }
            (":=", true) if bound == 0 => return Ok((statement, token)),
            (":=", true) => bound -= 1,
            ("where", true) => {
                return Err(wrong(line, format!("theorem {name:?}: `where` is not understood")));
            }
            ("|", true) if token.as_ref().is_some_and(|token| token.first) => {
                let reason = "a line that starts with | is not understood\nhint: write `:= by sorry` in place \
                    of a proof by cases";
                return Err(wrong(line, format!("theorem {name:?}: {reason}")));
            }
            ("(", _) => open.push(")"),
            ("[" | "@[", _) => open.push("]"),
            ("{", _) => open.push("}"),
            ("⟨", _) => open.push("⟩"),
            ("⦃", _) => open.push("⦄"),
            (")" | "]" | "}" | "⟩" | "⦄", _) if open.pop() != Some(text) => {
                return Err(wrong(line, format!("theorem {name:?}: {text} closes nothing")));
            }
            (word, true) if BINDERS.contains(&word) => bound += 1,
            _ => {}
        }
        statement.push_str(space);
        statement.push_str(if token.is_some_and(|token| token.is_comment()) { " " } else { text });
    }
}

/// A word, a string, a character, a comment, `:=`, or a sign.
struct Token<'a> {
    text: &'a str,
    line: usize,
    /// Whether it is the first of its line.
    first: bool,
    column: usize,
}

impl Token<'_> {
    fn is_comment(&self) -> bool {
        self.text.starts_with("--") || self.text.starts_with("/-")
    }

    fn is_name(&self) -> bool {
        self.text.starts_with(|first| is_word(first) || first == '«')
    }

    fn starts_command(&self) -> bool {
        let other = COMMANDS.contains(&self.text)
            || self.text == "@["
            || self.text == "#"
            || MODIFIERS.contains(&self.text)
            || (self.column == 0 && COMMANDS_OR_TACTICS.contains(&self.text));
        THEOREMS.contains(&self.text) || (self.first && other)
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '\'' | '!' | '?')
}

struct Tokens<'a> {
    rest: &'a str,
    line: usize,
    /// Whether the line has no token yet.
    fresh: bool,
    column: usize,
}

impl<'a> Tokens<'a> {
    fn next_but_comments(&mut self) -> Result<Option<Token<'a>>, LeanFileError> {
        loop {
            match self.next()? {
                Some(token) if token.is_comment() => {}
                token => return Ok(token),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, LeanFileError> {
        let trimmed = self.rest.trim_start();
        self.pass(self.rest.len() - trimmed.len());
        let Some(first) = trimmed.chars().next() else { return Ok(None) };
        let length = match first {
            _ if trimmed.starts_with("--") => trimmed.find('\n').unwrap_or(trimmed.len()),
            _ if trimmed.starts_with("/-") => {
                comment(trimmed).ok_or_else(|| wrong(self.line, "a comment is not closed"))?
            }
            '"' => string(trimmed).ok_or_else(|| wrong(self.line, "a string is not closed"))?,
            _ if trimmed.starts_with("r\"") || trimmed.starts_with("r#") => {
                return Err(wrong(self.line, "raw strings are not understood"));
            }
            '\'' => character(trimmed),
            '«' | '_' | '!' | '?' => name(trimmed),
            _ if is_word(first) => name(trimmed),
            _ if trimmed.starts_with(":=") => 2,
            _ if trimmed.starts_with("@[") => 2,
            _ => first.len_utf8(),
        };
        let token = Token {
            text: &trimmed[..length],
            line: self.line,
            first: self.fresh,
            column: self.column,
        };
        let is_comment = token.is_comment();
        let fresh = self.fresh;
        self.pass(length);
        // A comment before a command leaves it the first of its line.
        self.fresh = self.fresh || (is_comment && fresh);
        Ok(Some(token))
    }

    fn pass(&mut self, length: usize) {
        let (passed, rest) = self.rest.split_at(length);
        for character in passed.chars() {
            if character == '\n' {
                (self.line, self.column, self.fresh) = (self.line + 1, 0, true);
            } else {
                self.column += 1;
                self.fresh &= character.is_whitespace();
            }
        }
        self.rest = rest;
    }
}

/// The length of a name with its dots, where each piece may be quoted.
fn name(text: &str) -> usize {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let piece = match rest.strip_prefix('«').and_then(|quoted| quoted.find('»')) {
            Some(length) => length + "«»".len(),
            None if rest.starts_with('«') => return text.len(),
            None => rest.find(|character| !is_word(character)).unwrap_or(rest.len()),
        };
        at += piece;
        let goes_on = |rest: &str| rest.starts_with(|next| is_word(next) || next == '«');
        match text[at..].strip_prefix('.') {
            Some(rest) if piece > 0 && goes_on(rest) => at += 1,
            _ => return at,
        }
    }
}

fn string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of `'x'` or of an escape in quotes; of any other quote, 1, and of Mathlib's `''`, 2.
fn character(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\'')) => 2,
        Some((_, '\\')) => {
            characters.next();
            let end = characters.take(5).find(|&(_, character)| character == '\'');
            end.map_or(1, |(at, _)| at + 1)
        }
        _ => match characters.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
    }
}

fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/-") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"-/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(usize, String, String)> {
        let found = theorems(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let parts =
            |(line, theorem): (usize, Theorem)| (line, theorem.name, theorem.statement.unwrap());
        found.into_iter().map(parts).collect()
    }

    fn one(text: &str) -> (String, String) {
        let mut found = read(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let (_, name, statement) = found.remove(0);
        (name, statement)
    }

    #[test]
    fn a_statement_is_read_to_its_end() {
        for (text, name, statement) in [
            (
                "theorem foo (n : Nat) : n = n\n    ∧ n = n + 1 := by sorry",
                "foo",
                "(n : Nat) : n = n\n    ∧ n = n + 1",
            ),
            (
                "theorem foo2 (p : Prop) : p → p\n  → False := by\n  sorry\n",
                "foo2",
                "(p : Prop) : p → p\n  → False",
            ),
            ("theorem a :\nTrue\n:=\ntrivial", "a", "True"),
            ("theorem a : True", "a", "True"),
            ("lemma Foo.bar': True := x", "Foo.bar'", "True"),
            ("theorem «a b».c(p : Prop): p → p", "«a b».c", "(p : Prop): p → p"),
            ("@[simp, to_additive (attr := simp)] theorem a : p := x", "a", "p"),
            ("@[simp]\nprivate\n  theorem a : p := x", "a", "p"),
            ("/-- It's a\n theorem b : False -/\nprotected theorem a : p := x", "a", "p"),
            ("/- /- theorem b : False -/ -/ theorem a : p -- := q\n  ∧ r := x", "a", "p  \n  ∧ r"),
            ("theorem a (h : x = 1 := by simp) : p := x", "a", "(h : x = 1 := by simp) : p"),
            ("theorem a : let x := 1; x = 1 := rfl", "a", "let x := 1; x = 1"),
            ("theorem a : \":= theorem b\" = s := rfl", "a", "\":= theorem b\" = s"),
            ("theorem a : c = ':' := rfl", "a", "c = ':'"),
            ("theorem a : True |> fun x => x", "a", "True |> fun x => x"),
            ("theorem a : |x| ≤ |y| := by\n  open Nat in\n  simp -- theorem", "a", "|x| ≤ |y|"),
            ("theorem a : f '' s = \" := \" := x", "a", "f '' s = \" := \""),
        ] {
            assert_eq!(one(text), (name.to_owned(), statement.to_owned()), "{text}");
        }
    }

    #[test]
    fn no_theorem_is_skipped_or_made_up() {
        let text = "theorem a : p := by\n  exact h\n\n  theorem b : q := by sorry theorem c : r\n\
            @[simp] theorem d : s := t\nprivate lemma e : u\n/-\ntheorem f : v\n-/";
        let names: Vec<_> = read(text).into_iter().map(|(line, name, _)| (line, name)).collect();
        let wanted = [(1, "a"), (4, "b"), (4, "c"), (5, "d"), (6, "e")];
        assert_eq!(names, wanted.map(|(line, name)| (line, name.to_owned())));
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        for (text, line, wanted) in [
            ("\nimport Mathlib\ntheorem a : p", 2, "\"import\" starts no theorem"),
            ("theorem a : p := q\nopen Nat\ntheorem b : p", 2, "\"open\" starts no theorem"),
            ("theorem a : p := q\n\nvariable (p : Prop)", 3, "\"variable\" starts no theorem"),
            ("theorem a : p\nnamespace Foo", 2, "\"namespace\" starts no theorem"),
            ("theorem a : p := q\n#eval 1", 2, "\"#\" starts no theorem"),
            ("unsafe theorem a : p", 1, "\"unsafe\" starts no theorem"),
            ("theorem foo6.{u} (α : Type u) (a : α) : a = a := rfl", 1, "universe parameters"),
            ("theorem a : ∀ n, p n\n  | 0 => x\n", 1, "starts with |"),
            ("theorem a : p where\n  q := r", 1, "`where`"),
            ("theorem a (p : Prop : p\ntheorem b : q", 1, ") is missing"),
            ("theorem a : p) := x", 1, ") closes nothing"),
            ("theorem : p", 1, "without a name"),
            ("theorem a := x", 1, "has no statement"),
            ("theorem a", 1, "has no statement"),
            ("theorem a : p /- q", 1, "a comment is not closed"),
            ("theorem a : p = \"q", 1, "a string is not closed"),
            ("theorem a : p = r\"\\\" := q", 1, "raw strings"),
            ("@[simp theorem a : p", 1, "an attribute is not closed"),
            ("p : q", 1, "\"p\" starts no theorem"),
        ] {
            let error = theorems(text).expect_err(text);
            assert_eq!(error.line, line, "{text}");
            assert!(error.reason.contains(wanted), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            text in "\\PC{0,40}",
            lean in "(theorem |lemma |a|:|=|'|\"|«|»|\\.|\\{|\\}|\\(|\\)|/-|-/|--|@\\[|\\]|\\n| ){0,24}",
        ) {
            let _ = theorems(&text);
            let _ = theorems(&lean);
            let _ = theorems(&format!("theorem a : {lean}"));
        }
    }
}
