//! Refuses texts that would change what follows them in a file, before Lean sees them.

/// Words that start a command of their own, or may declare something in the middle of a proof.
const COMMANDS: &[&str] = &[
    "abbrev",
    "add_decl_doc",
    "alias",
    "attribute",
    "axiom",
    "binder_predicate",
    "builtin_dsimproc",
    "builtin_dsimproc_decl",
    "builtin_initialize",
    "builtin_simproc",
    "builtin_simproc_decl",
    "by_elab",
    "class",
    "coinductive",
    "declare_config_elab",
    "declare_simp_like_tactic",
    "declare_syntax_cat",
    "def",
    "deriving",
    "dsimproc",
    "dsimproc_decl",
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
    "irreducible_def",
    "lemma",
    "local",
    "macro",
    "macro_rules",
    "mutual",
    "namespace",
    "nonrec",
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
    "public",
    "recall",
    "register_builtin_option",
    "register_label_attr",
    "register_option",
    "register_parser_alias",
    "register_simp_attr",
    "register_tactic_tag",
    "run_cmd",
    "run_elab",
    "run_meta",
    "run_tac",
    "scoped",
    "seal",
    "section",
    "set_option",
    "simproc",
    "simproc_decl",
    "structure",
    "syntax",
    "tactic_extension",
    "theorem",
    "universe",
    "unseal",
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

/// Whether a character may stand in an identifier or a number, by Lean's rules or Unicode's.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '\'' | '.' | '!' | '?')
}

/// Walks over the tokens of a text as Lean reads them, as far as brackets, words, strings and comments go.
///
/// What is in strings and comments is not looked at. So a text must not be able to have Lean read a part of
/// them as code: where the two readings could differ, it is refused.
fn check(text: &str) -> Result<(), String> {
    let mut open: Vec<char> = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(character) = rest.chars().next() {
        let skipped = match character {
            '\t' => return Err("Lean takes no tabs".to_owned()),
            _ if character.is_control() && !matches!(character, '\n' | '\r') => {
                return Err(format!("it contains the control character {character:?}"));
            }
            '`' => return Err("it contains a backtick, of quoted syntax".to_owned()),
            '"' => string(rest, before)?,
            '\'' => quote(rest, before)?,
            '«' => rest.find('»').ok_or("« is not closed")? + '»'.len_utf8(),
            '-' if rest.starts_with("--") => {
                require_apart(before, "--")?;
                rest.find('\n').unwrap_or(rest.len())
            }
            '/' if rest.starts_with("/-") => {
                require_apart(before, "/-")?;
                comment(rest)?
            }
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
            _ if is_word(character) => words(rest)?,
            _ => character.len_utf8(),
        };
        before = rest[..skipped].chars().next_back().unwrap_or(before);
        rest = &rest[skipped..];
    }
    match open.pop() {
        Some(missing) => Err(format!("{missing} is missing")),
        None => Ok(()),
    }
}

/// Refuses a comment that Lean may read as the end of a longer token, such as `//` and `-` in `//-`.
fn require_apart(before: char, comment: &str) -> Result<(), String> {
    let ends_a_token =
        before.is_whitespace() || is_word(before) || "()[]{}⟨⟩,;»\"".contains(before);
    if ends_a_token {
        return Ok(());
    }
    Err(format!("{comment} stands directly behind {before:?}; put a space before a comment"))
}

fn closing(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        _ => '⟩',
    }
}

/// The length of the words and numbers that a text starts with, without space between them, if they may
/// stand there; up to a quote that is part of none of them.
fn words(text: &str) -> Result<usize, String> {
    let length = text.find(|character| !is_word(character)).unwrap_or(text.len());
    let mut rest = &text[..length];
    let mut after_number = false;
    while let Some(character) = rest.chars().next() {
        if character == '\'' {
            break;
        }
        let end = if character.is_ascii_digit() {
            rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())
        } else if is_letter(character) {
            identifier(rest)
        } else {
            character.len_utf8()
        };
        let word = &rest[..end];
        if is_letter(character) {
            if after_number { require_no_command_in(word)? } else { require_no_command(word)? }
        }
        after_number = character.is_ascii_digit();
        rest = &rest[end..];
    }
    Ok(length - rest.len())
}

fn require_no_command(word: &str) -> Result<(), String> {
    if COMMANDS.contains(&word) {
        return Err(format!("{word:?} starts a command"));
    }
    // `stop` skips the rest of a proof; as a field, of a range, it does nothing.
    if word == "stop" || word.split('.').any(|part| HOLES.contains(&part)) {
        return Err(format!("{word:?} proves nothing"));
    }
    Ok(())
}

/// Directly behind a number a word may begin anywhere: `0xfaxiom` is `0xfa` and `xiom`, and `1e5def` ends
/// with a command.
fn require_no_command_in(word: &str) -> Result<(), String> {
    let all = COMMANDS.iter().chain(HOLES).chain(&["stop"]);
    match all.into_iter().find(|command| word.contains(**command)) {
        Some(command) => Err(format!("{command:?} stands directly behind a number")),
        None => Ok(()),
    }
}

/// The length of the identifier that a text starts with, with its dots.
fn identifier(text: &str) -> usize {
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let goes_on = match character {
            '.' => characters.peek().is_some_and(|&(_, next)| is_letter(next)),
            _ => is_letter(character) || is_rest(character),
        };
        if !goes_on {
            return at;
        }
    }
    text.len()
}

/// What an identifier starts with, after Lean's `isIdFirst`: `λ`, `Π` and `Σ` are no letters, and those of
/// Latin-1 only in newer versions. Taking too few for letters finds more words.
fn is_letter(character: char) -> bool {
    let is_greek_or_like = matches!(character,
        'Α'..='Ω' | 'α'..='ω' | '\u{3ca}'..='\u{3fb}' | '\u{1f00}'..='\u{1ffe}'
        | '\u{2100}'..='\u{214f}' | '\u{1d49c}'..='\u{1d59f}');
    let is_sign = matches!(character, 'λ' | 'Π' | 'Σ');
    character.is_ascii_alphabetic() || character == '_' || (is_greek_or_like && !is_sign)
}

/// What an identifier goes on with besides letters, after Lean's `isIdRest`.
fn is_rest(character: char) -> bool {
    character.is_ascii_digit()
        || matches!(character, '\'' | '!' | '?')
        || matches!(character,
            '\u{2080}'..='\u{2089}' | '\u{2090}'..='\u{209c}' | '\u{1d62}'..='\u{1d6a}' | '\u{2c7c}')
}

/// The length of a string literal.
///
/// Raw and interpolated strings are refused: where they end depends on how Lean reads what is before them,
/// and what is in braces.
fn string(text: &str, before: char) -> Result<usize, String> {
    if is_word(before) || matches!(before, '#' | '»') {
        return Err(
            "a string stands directly behind a word, as raw and interpolated ones do".to_owned()
        );
    }
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '{' => return Err("a string contains {, which may be interpolated".to_owned()),
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a string is not closed".to_owned())
}

/// The length of what a quote outside an identifier starts: a character literal, Mathlib's `''`, or itself
/// as the end of a token such as `⁻¹'`.
///
/// Lean reads a literal where the quote starts a token and no other quote follows it at once, and then takes
/// one character or an escape and a quote, or fails. Which tokens have a quote depends on the library, so a
/// quote is refused wherever a Lean with other tokens would read on from another place.
fn quote(text: &str, before: char) -> Result<usize, String> {
    let apart = before.is_whitespace() || "()[]{}⟨⟩,;".contains(before);
    if let Some(rest) = text.strip_prefix("''") {
        if apart && !rest.starts_with('\'') {
            return Ok(2);
        }
        return Err("'' stands directly beside another sign; put spaces around it".to_owned());
    }
    match (apart, char_literal(text)) {
        (true, Some(length)) => Ok(length),
        (true, None) => Err("a quote starts no character such as 'a' or '\\n'".to_owned()),
        // Read as the start of a literal, this is an error and never something else.
        (false, None) if !text[1..].starts_with('\\') => Ok(1),
        (false, _) => {
            Err(format!("a quote stands directly behind {before:?}; put a space between them"))
        }
    }
}

/// The length of `'x'`, or of an escape in quotes.
fn char_literal(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    let mut characters = rest.chars();
    let length = match characters.next()? {
        '\'' | '\n' | '\r' => return None,
        '\\' => {
            let digits = match characters.next()? {
                '\\' | '\'' | '"' | 'n' | 't' | 'r' => 0,
                'x' => 2,
                'u' => 4,
                _ => return None,
            };
            let read = characters.take(digits).filter(char::is_ascii_hexdigit).count();
            if read != digits {
                return None;
            }
            2 + digits
        }
        character => character.len_utf8(),
    };
    rest[length..].starts_with('\'').then_some(length + 2)
}

/// Whether a command may be named anywhere in a text, be it in a string, a comment or a longer word.
pub(super) fn names_commands(text: &str) -> bool {
    let mut pieces = text.split('#').skip(1);
    pieces.any(|rest| rest.starts_with(char::is_alphabetic))
        || COMMANDS.iter().any(|command| text.contains(command))
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
            "exact f \"a ( string with \\\" theorem\"",
            "simp -- a ( comment",
            "simp /- a ( /- nested -/ theorem -/",
            "exact ('(' : Char)",
            "exact ('\\n', 'λ')",
            "· exact h",
            "exact #[1, 2]",
            "have h : 1 = 1 := by\n  rfl\nexact h",
            "exact h' h'' x'",
            "open Nat in exact h",
            "exact h.1.le",
            "norm_num [x₁, 1e5, 0xff]",
            "simpa using Nat.succ_le_of_lt h₂.default",
            "exact ∑ x, λ y, y",
            // As users of Mathlib write: a quote in a word, in a token, and the token of images.
            "exact f '' s",
            "exact (f '' s) '' t",
            "exact Set.mem_image_of_mem f '' s",
            "exact f ⁻¹' s",
            "exact f ⁻¹' (s ∩ t)",
            "exact ∑' x', f x'",
            "exact h₁'.1 x' ℕ' h''.2",
            "exact Σ' x : α, p x",
            r#"exact ('\'', '\\', '\"', '\x41', '\u03bb', '"')"#,
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

    /// Each of these has Lean read a command where a careless reader sees one word, a string or a comment.
    #[test]
    fn texts_that_lean_may_divide_otherwise_are_refused() {
        for (text, why) in [
            ("skip 0axiom foo : False", "\"axiom\" stands directly behind a number"),
            ("skip 1e5def x := 1", "\"def\" stands directly behind a number"),
            ("skip 0xfaxiom x : False", "\"axiom\" stands directly behind a number"),
            ("skip 0sorry", "\"sorry\" stands directly behind a number"),
            ("exact λaxiom foo : False", "\"axiom\" starts a command"),
            ("exact éaxiom foo : False", "\"axiom\" starts a command"),
            ("exact h.1axiom foo : False", "\"axiom\" stands directly behind a number"),
            ("exact a 0infixl:65r\"\\\" => And #eval 1 --\"", "\"infix\" stands"),
            ("exact f r\"\\\" axiom x : False --\"", "a string stands directly behind a word"),
            ("exact f r#\"h\"#", "a string stands directly behind a word"),
            ("exact f s!\"{\"\"} axiom \"", "a string stands directly behind a word"),
            ("exact f s! \"{\" axiom \"}\"", "may be interpolated"),
            ("exact `r\"\\\" x \" axiom \"", "a backtick"),
            ("exact (h : {x : ℕ //-x = y} axiom -- -/ })", "put a space before a comment"),
            ("exact a |-- axiom\nb", "put a space before a comment"),
            (r#"exact f '' "' x " axiom foo : False --""#, "\"axiom\" starts a command"),
            (r#"exact f '''"''' axiom foo : False --""#, "spaces around it"),
            (r#"exact a+'' " axiom ""#, "spaces around it"),
            (r"exact '\'end '", "a quote starts no character"),
            ("exact 'ab'", "a quote starts no character"),
            (r#"exact ' "'"#, "a quote starts no character"),
            (r"exact '\q'", "a quote starts no character"),
            (r"exact '\x4'", "a quote starts no character"),
            ("exact '\n'", "a quote starts no character"),
            (r#"exact 0'\"' axiom foo : False --""#, "a quote stands directly behind '0'"),
            (r#"exact f ⁻¹'"' axiom x --""#, "a quote stands directly behind '¹'"),
            (r#"exact a+'"' axiom x --""#, "a quote stands directly behind '+'"),
        ] {
            assert!(reason(text).contains(why), "{text}: {}", reason(text));
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
