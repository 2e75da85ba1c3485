//! A state's text as goals, by lines. Parts are slices of the text, so reading takes one pass.

use super::StateFormatError;

/// What goes before a target.
const TURNSTILE: char = '⊢';
const CASE: &str = "case ";

/// One goal of a state.
#[derive(Debug, Default)]
pub(super) struct Goal<'a> {
    /// The line number at which it begins.
    pub(super) line: usize,
    /// The whole `case NAME` line.
    pub(super) case: Option<&'a str>,
    pub(super) variables: Vec<Variable<'a>>,
    /// From the turnstile to the end of the last line that belongs to it.
    pub(super) target: &'a str,
}

/// Variables that share a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variable<'a> {
    /// The line number.
    pub(super) line: usize,
    /// One name, or several with spaces between them.
    pub(super) names: &'a str,
    /// What follows the names: ` : type`, and perhaps ` := value`, with all lines that belong to it.
    pub(super) rest: &'a str,
}

impl<'a> Variable<'a> {
    /// The names one by one; a name in guillemets may hold spaces.
    pub(super) fn each_name(&self) -> impl Iterator<Item = &'a str> {
        let mut quoted = false;
        self.names.split(move |c| {
            quoted = (quoted || c == '«') && c != '»';
            c == ' ' && !quoted
        })
    }
}

/// What the next line may continue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Variable,
    Target,
}

/// The goals of a state.
pub(super) fn read(text: &str) -> Result<Vec<Goal<'_>>, StateFormatError> {
    let mut reader = Reader { text, goals: Vec::new(), goal: Goal::default(), last: Last::Nothing };
    let mut start = 0;
    for (number, line) in (1..).zip(text.split('\n')) {
        reader.take(number, start, line)?;
        start += line.len() + 1;
    }
    reader.end_goal()?;
    if reader.goals.is_empty() {
        return Err(StateFormatError::NoGoal);
    }
    Ok(reader.goals)
}

struct Reader<'a> {
    text: &'a str,
    goals: Vec<Goal<'a>>,
    goal: Goal<'a>,
    last: Last,
}

impl<'a> Reader<'a> {
    fn take(&mut self, number: usize, start: usize, line: &'a str) -> Result<(), StateFormatError> {
        if line.is_empty() {
            return self.empty_line(number);
        }
        if line.starts_with(TURNSTILE) {
            self.begin(number, Last::Target)?;
            self.goal.target = line;
            self.last = Last::Target;
            return Ok(());
        }
        if line.starts_with(CASE) {
            self.begin(number, Last::Nothing)?;
            if self.goal.case.is_some() || !self.goal.variables.is_empty() {
                return Err(StateFormatError::NoTarget { line: self.goal.line });
            }
            self.goal.case = Some(line);
            return Ok(());
        }
        if let Some(names) = names_of(line) {
            self.begin(number, Last::Variable)?;
            let rest = &line[names.len()..];
            self.goal.variables.push(Variable { line: number, names, rest });
            self.last = Last::Variable;
            return Ok(());
        }
        self.go_on(number, start + line.len())
    }

    /// Notes where a goal begins; refuses one that begins right behind a target.
    fn begin(&mut self, number: usize, what: Last) -> Result<(), StateFormatError> {
        if self.last == Last::Target {
            return Err(StateFormatError::Unseparated { line: number });
        }
        if self.goal.case.is_none() && self.goal.variables.is_empty() {
            self.goal.line = number;
        }
        debug_assert!(what == Last::Target || self.goal.target.is_empty(), "targets end goals");
        Ok(())
    }

    /// An empty line ends a goal. PyPantograph also prints one where a goal has no variables.
    fn empty_line(&mut self, number: usize) -> Result<(), StateFormatError> {
        match self.last {
            Last::Target => self.end_goal(),
            Last::Nothing => Ok(()),
            Last::Variable => {
                let line = if self.goal.line == 0 { number } else { self.goal.line };
                Err(StateFormatError::NoTarget { line })
            }
        }
    }

    fn end_goal(&mut self) -> Result<(), StateFormatError> {
        if self.last == Last::Target {
            self.goals.push(std::mem::take(&mut self.goal));
            self.last = Last::Nothing;
        } else if self.goal.case.is_some() || !self.goal.variables.is_empty() {
            if self.goals.is_empty() && !self.text.contains(TURNSTILE) {
                return Err(StateFormatError::NoGoal);
            }
            return Err(StateFormatError::NoTarget { line: self.goal.line });
        }
        Ok(())
    }

    /// A line that goes on with the one before: Lean indents it, but not within `let` or `match`.
    fn go_on(&mut self, number: usize, end: usize) -> Result<(), StateFormatError> {
        let longer = |part: &'a str| &self.text[offset(self.text, part)..end];
        match self.last {
            Last::Target => self.goal.target = longer(self.goal.target),
            Last::Variable => {
                if let Some(variable) = self.goal.variables.last_mut() {
                    variable.rest = longer(variable.rest);
                }
            }
            Last::Nothing if self.text.contains(TURNSTILE) => {
                return Err(StateFormatError::Stray { line: number });
            }
            Last::Nothing => return Err(StateFormatError::NoGoal),
        }
        Ok(())
    }
}

/// Where a part of a text begins in it.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr() as usize - text.as_ptr() as usize
}

/// The names before ` : ` (or ` :` at the end of the line), if that is how the line begins.
fn names_of(line: &str) -> Option<&str> {
    let mut at = 0;
    loop {
        at += name_length(&line[at..])?;
        let rest = line[at..].strip_prefix(' ')?;
        if rest == ":" || rest.starts_with(": ") {
            return Some(&line[..at]);
        }
        at += 1;
    }
}

/// The length of the name at the start of a text: letters, digits, daggers, parts in guillemets.
fn name_length(text: &str) -> Option<usize> {
    const ANONYMOUS: &str = "[anonymous]";
    if text.starts_with(ANONYMOUS) {
        return Some(ANONYMOUS.len());
    }
    let mut quoted = false;
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        quoted = (quoted || c == '«') && c != '»';
        if !quoted && !is_of_name(c) {
            end = at;
            break;
        }
    }
    (end > 0 && !quoted).then_some(end)
}

/// Whether a character may stand in a name, `inst✝¹` and `h'.left` included.
pub(super) fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '\'' | '!' | '?' | '.' | '✝' | '»')
}
