//! Where a variable's value begins.

use super::goals::is_of_name;

const DEFINES: &str = ":=";

/// It cannot be told where the value begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unclear;

/// Where ` := value` begins in what follows a variable's name; `None` where there is no value.
///
/// A `:=` in brackets or in a string belongs to the type, and so does the one that a `let` or `have` of the
/// type takes. One pass.
pub(super) fn value_start(rest: &str) -> Result<Option<usize>, Unclear> {
    if !rest.contains(DEFINES) {
        return Ok(None);
    }
    let mut scan = Scan { rest, at: 0, depth: 0, taken: 0, statements: false };
    scan.run()
}

struct Scan<'a> {
    rest: &'a str,
    at: usize,
    /// Brackets that are open.
    depth: usize,
    /// How many `let` and `have` have not met their `:=` yet.
    taken: usize,
    /// Whether a `do` was met, in which a `:=` may be an assignment.
    statements: bool,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<Option<usize>, Unclear> {
        while let Some(c) = self.rest[self.at..].chars().next() {
            match c {
                '(' | '[' | '{' | '⟨' | '⦃' | '⟦' | '⌊' | '⌈' => self.depth += 1,
                ')' | ']' | '}' | '⟩' | '⦄' | '⟧' | '⌋' | '⌉' => {
                    self.depth = self.depth.checked_sub(1).ok_or(Unclear)?;
                }
                '"' => {
                    self.skip_string()?;
                    continue;
                }
                '\'' => {
                    self.skip_character();
                    continue;
                }
                '←' if self.depth == 0 => self.taken = self.taken.saturating_sub(1),
                ':' if self.depth == 0 && self.rest[self.at..].starts_with(DEFINES) => {
                    if self.taken == 0 {
                        return self.found();
                    }
                    self.taken -= 1;
                    self.at += DEFINES.len();
                    continue;
                }
                c if is_of_name(c) || c == '«' => {
                    self.word()?;
                    continue;
                }
                _ => {}
            }
            self.at += c.len_utf8();
        }
        if self.depth == 0 { Ok(None) } else { Err(Unclear) }
    }

    /// The value begins with the space before its `:=`.
    fn found(&self) -> Result<Option<usize>, Unclear> {
        let before = self.rest[..self.at].trim_end().len();
        if self.statements || before == self.at { Err(Unclear) } else { Ok(Some(before)) }
    }

    fn word(&mut self) -> Result<(), Unclear> {
        let text = &self.rest[self.at..];
        if text.starts_with('«') {
            self.at += text.find('»').ok_or(Unclear)? + '»'.len_utf8();
            return Ok(());
        }
        let end = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
        if self.depth == 0 {
            match &text[..end] {
                "let" | "have" | "letI" | "haveI" | "let_fun" | "let_delayed" => self.taken += 1,
                "do" => self.statements = true,
                _ => {}
            }
        }
        self.at += end;
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), Unclear> {
        let mut escaped = false;
        for (at, c) in self.rest[self.at..].char_indices().skip(1) {
            if c == '"' && !escaped {
                self.at += at + 1;
                return Ok(());
            }
            escaped = c == '\\' && !escaped;
        }
        Err(Unclear)
    }

    /// A character such as `'('`; names that end with a `'` are words.
    fn skip_character(&mut self) {
        let mut after = self.rest[self.at + 1..].char_indices().skip(1);
        let first = self.rest[self.at + 1..].chars().next();
        let closing = match first {
            Some('\\') => after.skip(1).take(8).find(|(_, c)| *c == '\'').map(|(at, _)| at),
            _ => after.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at),
        };
        self.at += 1 + closing.map_or(0, |at| at + 1);
    }
}
