//! Refuses texts that would change what follows them in a file, before Lean sees them.

/// Words that start a command of their own, or may declare something in the middle of a proof.
const COMMANDS: &[&str] = &[
    "abbrev",
    "add_decl_doc",
    "attribute",
    "axiom",
    "binder_predicate",
    "builtin_initialize",
    "by_elab",
    "class",
    "coinductive",
    "declare_syntax_cat",
    "def",
    "deriving",
    "elab",
    "elab_rules",
    "end",
    "example",
    "export",
    "extends",
    "import",
    "include",
    "inductive",
    "infix",
    "infixl",
    "infixr",
    "initialize",
    "instance",
    "lemma",
    "macro",
    "macro_rules",
    "mutual",
    "namespace",
    "noncomputable",
    "notation",
    "omit",
    "opaque",
    "partial",
    "postfix",
    "prefix",
    "prelude",
    "private",
    "protected",
    "run_cmd",
    "run_elab",
    "run_meta",
    "run_tac",
    "section",
    "set_option",
    "structure",
    "syntax",
    "theorem",
    "universe",
    "unsafe",
    "variable",
];

/// Words that leave a proof open while Lean goes on.
const HOLES: &[&str] = &["admit", "sorry", "sorryAx"];

/// Words with which a text would go on with the tactic before it.
const CONTINUATIONS: &[&str] = &[
    "at",
    "by",
    "decreasing_by",
    "else",
    "from",
    "generalizing",
    "in",
    "only",
    "termination_by",
    "then",
    "using",
    "where",
    "with",
];

/// Why a tactic is refused, if it is.
pub(super) fn tactic(text: &str) -> Result<(), String> {
    let text = text.trim();
    let Some(first) = text.chars().next() else {
        return Err("the tactic is empty".to_owned());
    };
    let starts = first.is_alphabetic() || matches!(first, '_' | '(' | '{' | '·' | '.' | '«');
    let word: String = text.chars().take_while(|&c| is_word(c)).collect();
    if !starts || CONTINUATIONS.contains(&word.as_str()) {
        let start = if starts { word } else { first.to_string() };
        return Err(format!("no tactic starts with {start:?}; it would go on with the one before"));
    }
    check(text)
}

/// Why a statement is refused, if it is.
pub(super) fn statement(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("the statement is empty".to_owned());
    }
    check(text)
}

/// The lines of a tactic, indented alike, so that it is one item of a tactic block.
pub(super) fn indented(tactic: &str) -> String {
    let tactic = tactic.trim_end().trim_start_matches(['\n', '\r']);
    let own = tactic.len() - tactic.trim_start_matches(' ').len();
    let mut text = String::with_capacity(tactic.len() + 8);
    for line in tactic.lines() {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        let line = &line[spaces.min(own)..];
        if !line.is_empty() {
            text.push_str("  ");
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '\'' | '.' | '!' | '?')
}

/// Walks over the tokens of a text as Lean reads them, as far as brackets, words, strings and comments go.
fn check(text: &str) -> Result<(), String> {
    let mut open: Vec<char> = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let skipped = match character {
            '\t' => return Err("Lean takes no tabs".to_owned()),
            _ if character.is_control() && !matches!(character, '\n' | '\r') => {
                return Err(format!("it contains the control character {character:?}"));
            }
            '"' => string(rest)?,
            '\'' => char_literal(rest),
            '«' => rest.find('»').ok_or("« is not closed")? + '»'.len_utf8(),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/-") => comment(rest)?,
            '#' if rest[1..].starts_with(|next: char| next.is_alphabetic()) => {
                return Err("it contains a command that starts with #".to_owned());
            }
            '(' | '[' | '{' | '⟨' => {
                open.push(closing(character));
                character.len_utf8()
            }
            ')' | ']' | '}' | '⟩' => {
                if open.pop() != Some(character) {
                    return Err(format!("{character} closes nothing"));
                }
                character.len_utf8()
            }
            _ if is_word(character) => word(rest)?,
            _ => character.len_utf8(),
        };
        rest = &rest[skipped..];
    }
    match open.pop() {
        Some(missing) => Err(format!("{missing} is missing")),
        None => Ok(()),
    }
}

fn closing(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        _ => '⟩',
    }
}

/// The length of the word that a text starts with, if it may stand there.
fn word(text: &str) -> Result<usize, String> {
    if let Some(hashes) = raw_string(text) {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = hashes + 2;
        let length = text[start..].find(&end).ok_or("a raw string is not closed")?;
        return Ok(start + length + end.len());
    }
    let length = text.find(|character| !is_word(character)).unwrap_or(text.len());
    let word = text[..length].trim_matches('.');
    if COMMANDS.contains(&word) {
        return Err(format!("{word:?} starts a command"));
    }
    // `stop` skips the rest of a proof; as a field, of a range, it does nothing.
    if word == "stop" || word.split('.').any(|part| HOLES.contains(&part)) {
        return Err(format!("{word:?} proves nothing"));
    }
    Ok(length)
}

/// The number of `#` of a raw string: `r"..."`, `r#"..."#`.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let quote = after.trim_start_matches('#');
    quote.starts_with('"').then(|| after.len() - quote.len())
}

fn string(text: &str) -> Result<usize, String> {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a string is not closed".to_owned())
}

/// `'x'` and `'\n'`; the quote of anything else is a character like others.
fn char_literal(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    let Some((_, first)) = characters.next() else { return 1 };
    if first == '\\' {
        characters.next();
    }
    let is_quote = |&(_, character): &(usize, char)| character == '\'';
    characters
        .take(6)
        .find(is_quote)
        .filter(|&(at, _)| first == '\\' || at <= 5)
        .map_or(1, |(at, _)| at + 1)
}

fn comment(text: &str) -> Result<usize, String> {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/-") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"-/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += 1;
        }
    }
    Err("a comment is not closed".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reason(text: &str) -> String {
        tactic(text).expect_err(text)
    }

    #[test]
    fn tactics_of_every_form_pass() {
        for text in [
            "intro h1 h2",
            "rewrite [← h₁ (a b)] at h",
            "cases h1 with | inl h => ?_ | inr h' => ?_",
            "refine ⟨?_, fun x => h' x⟩",
            "exact foo.end_of_axioms",
            "exact h.«theorem»",
            "exact f \"a ( string with \\\" theorem\" r#\"raw \" ) axiom\"#",
            "simp -- a ( comment",
            "simp /- a ( /- nested -/ theorem -/",
            "exact ('(' : Char)",
            "exact ('\\n', 'λ')",
            "· exact h",
            "exact #[1, 2]",
            "have h : 1 = 1 := by\n  rfl\nexact h",
            "exact h' h'' x'",
            "open Nat in exact h",
        ] {
            assert_eq!(tactic(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn tactics_that_change_what_follows_are_refused() {
        assert_eq!(reason(" \n"), "the tactic is empty");
        assert_eq!(reason("sorry"), "\"sorry\" proves nothing");
        assert_eq!(reason("admit"), "\"admit\" proves nothing");
        assert_eq!(reason("exact sorryAx _"), "\"sorryAx\" proves nothing");
        assert_eq!(reason("exact _root_.sorryAx _"), "\"_root_.sorryAx\" proves nothing");
        assert!(reason("skip\nend").contains("\"end\" starts a command"));
        assert!(reason("set_option maxRecDepth 9 in skip").contains("set_option"));
        for word in COMMANDS {
            assert!(reason(&format!("skip\n{word} x : False")).contains(word));
        }
        assert!(reason("skip\n#eval 1").contains('#'));
        assert!(reason("exact (h").contains(") is missing"));
        assert!(reason("exact h)").contains(") closes nothing"));
        assert!(reason("exact ⟨h)").contains(") closes nothing"));
        assert!(reason("skip /- h").contains("a comment is not closed"));
        assert!(reason("skip /- /- -/").contains("a comment is not closed"));
        assert!(reason("exact \"h").contains("a string is not closed"));
        assert!(reason("exact r#\"h\"").contains("a raw string is not closed"));
        assert!(reason("exact h.«x").contains("not closed"));
        assert!(reason("skip\0").contains("control character"));
        assert!(reason("\tskip\tskip").contains("tabs"));
        for text in [
            "<;> simp",
            "at h",
            "| inl h => skip",
            "with h",
            "▸ h",
            "+ 1",
            ", h",
            "[h]",
            "=> h",
            "; skip",
        ] {
            assert!(reason(text).contains("no tactic starts with"), "{text}");
        }
    }

    #[test]
    fn lines_keep_their_places_to_each_other() {
        assert_eq!(indented("intro h"), "  intro h\n");
        assert_eq!(
            indented("\n   have : p := by\n     skip\n   exact h\n"),
            "  have : p := by\n    skip\n  exact h\n"
        );
        assert_eq!(indented("skip\r\nskip"), "  skip\n  skip\n");
        assert_eq!(indented("skip\n\nskip"), "  skip\n\n  skip\n");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}", lean in "[-/\"'«»()⟨⟩#r\\\\a \n]{0,20}") {
            let _ = tactic(&text);
            let _ = tactic(&format!("a{lean}"));
            let lines = indented(&text);
            prop_assert!(lines.lines().all(|line| line.is_empty() || line.starts_with("  ")));
        }

        #[test]
        fn a_text_that_passes_closes_what_it_opens(text in "[-/\"()a\n]{1,12}") {
            // Two texts that pass also pass one after the other: neither swallows the other.
            if check(&text).is_ok() {
                let (followed, hole) = (format!("{text}\n(a)"), format!("{text}\nsorry"));
                prop_assert!(check(&followed).is_ok());
                prop_assert!(check(&hole).is_err());
            }
        }
    }
}
