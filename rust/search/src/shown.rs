//! What others say, as a piece of a message.

/// A text of another program or server in one line, without characters that do something to a terminal.
pub(crate) fn one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if !shown.is_empty() {
            shown.push(' ');
        }
        shown.push_str(&harmless(line));
    }
    shown
}

/// The same in its lines.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if acts(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Control characters, which move the cursor or start an escape sequence, and those that turn the direction
/// of what follows.
fn acts(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (character.is_control() && !matches!(character, '\n' | '\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_is_left() {
        assert_eq!(one_line(" a\n\n  b\r\nc "), "a b c");
        assert_eq!(one_line("\u{1b}[31mred\u{7}\u{9b}2J"), "\\u{1b}[31mred\\u{7}\\u{9b}2J");
        assert_eq!(one_line("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(harmless("⊢ p →\n  q\u{8}"), "⊢ p →\n  q\\u{8}");
        assert_eq!(one_line(""), "");
    }
}
