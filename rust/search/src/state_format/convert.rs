//! From one printed form to another.

use std::borrow::Cow;

use super::goals::{Goal, Variable, read};
use super::values::value_start;
use super::{StateFormat, StateFormatError};

/// A text may grow by this factor: a type is repeated for each of its variables.
const GROWTH: usize = 64;
/// Short texts may grow to this many bytes.
const ROOM: usize = 1 << 16;

/// A state's text in another format.
///
/// The result is in normal form: goals are one empty line apart, and no other line is empty. A text in normal
/// form is lent, not copied. Lines that were broken stay broken where they are: another printer may break
/// them elsewhere. Takes time linear in the lengths of text and result.
///
/// - Into `as-given`: the text unchanged.
/// - Into `pantograph`: variables that share a line get one each.
/// - Into `lean` from `pantograph`: neighbours without values whose types have the same text share a line.
///   Lean merges where the types are the same, which texts show nearly always, but not for two `sorry`.
/// - Into `burnqed`: one line for each variable, without `case` lines and values.
///
/// # Errors
/// [`StateFormatError`]: the text is no proof state, is not in `from`, or `from` has dropped what `to` prints.
pub fn convert(
    text: &str,
    from: StateFormat,
    to: StateFormat,
) -> Result<Cow<'_, str>, StateFormatError> {
    if to == StateFormat::AsGiven {
        return Ok(Cow::Borrowed(text));
    }
    let goals = read(text)?;
    require_in(&goals, from)?;
    if from == StateFormat::Burnqed && to != StateFormat::Burnqed {
        return Err(StateFormatError::Dropped { from, to });
    }
    let limit = ROOM.max(text.len().saturating_mul(GROWTH));
    let mut printer = Printer { out: String::with_capacity(text.len()), limit };
    for goal in &goals {
        printer.goal(goal, from, to)?;
    }
    Ok(if printer.out == text { Cow::Borrowed(text) } else { Cow::Owned(printer.out) })
}

/// The formats that a text can be in; none if it is no proof state.
///
/// Every proof state may be Lean's. A text without merged variables may also be PyPantograph's, and one that
/// also has neither `case` lines nor values may be BurnQED's.
#[must_use]
pub fn detect(text: &str) -> Vec<StateFormat> {
    let Ok(goals) = read(text) else { return Vec::new() };
    let may_be = |format: &StateFormat| require_in(&goals, *format).is_ok();
    StateFormat::PRINTED.into_iter().filter(may_be).collect()
}

/// Refuses what a format does not print.
fn require_in(goals: &[Goal<'_>], format: StateFormat) -> Result<(), StateFormatError> {
    let refuse = |line, what| Err(StateFormatError::NotIn { format, line, what });
    match format {
        StateFormat::AsGiven => return Err(StateFormatError::NoSource),
        StateFormat::Lean => return Ok(()),
        StateFormat::Pantograph | StateFormat::Burnqed => {}
    }
    for goal in goals {
        if goal.case.is_some() && format == StateFormat::Burnqed {
            return refuse(goal.line, "the name of a goal");
        }
        for variable in &goal.variables {
            if variable.each_name().nth(1).is_some() {
                return refuse(variable.line, "variables that share a type");
            }
            if format == StateFormat::Burnqed && value_of(variable)?.is_some() {
                return refuse(variable.line, "a value");
            }
        }
    }
    Ok(())
}

fn value_of(variable: &Variable<'_>) -> Result<Option<usize>, StateFormatError> {
    value_start(variable.rest).map_err(|_| StateFormatError::UnclearValue { line: variable.line })
}

struct Printer {
    out: String,
    limit: usize,
}

impl Printer {
    fn goal(
        &mut self,
        goal: &Goal<'_>,
        from: StateFormat,
        to: StateFormat,
    ) -> Result<(), StateFormatError> {
        if !self.out.is_empty() {
            self.out.push_str("\n\n");
        }
        if let Some(case) = goal.case.filter(|_| to != StateFormat::Burnqed) {
            self.parts(&[case, "\n"])?;
        }
        match to {
            StateFormat::Lean if from == StateFormat::Pantograph => self.merged(&goal.variables)?,
            StateFormat::Lean => {
                for variable in &goal.variables {
                    self.parts(&[variable.names, variable.rest, "\n"])?;
                }
            }
            _ => self.one_by_one(&goal.variables, to)?,
        }
        self.parts(&[goal.target])
    }

    /// One line for each variable.
    fn one_by_one(
        &mut self,
        variables: &[Variable<'_>],
        to: StateFormat,
    ) -> Result<(), StateFormatError> {
        for variable in variables {
            let mut rest = variable.rest;
            if to == StateFormat::Burnqed
                && let Some(value) = value_of(variable)?
            {
                rest = &rest[..value];
            }
            for name in variable.each_name() {
                self.parts(&[name, rest, "\n"])?;
            }
        }
        Ok(())
    }

    /// One line for neighbours of one type.
    fn merged(&mut self, variables: &[Variable<'_>]) -> Result<(), StateFormatError> {
        let mut before: Option<&Variable<'_>> = None;
        for variable in variables {
            match before {
                Some(other) if other.rest == variable.rest && value_of(variable)?.is_none() => {
                    self.parts(&[" "])?;
                }
                Some(other) => self.parts(&[other.rest, "\n"])?,
                None => {}
            }
            self.parts(&[variable.names])?;
            before = Some(variable);
        }
        before.map_or(Ok(()), |last| self.parts(&[last.rest, "\n"]))
    }

    fn parts(&mut self, parts: &[&str]) -> Result<(), StateFormatError> {
        let more: usize = parts.iter().map(|part| part.len()).sum();
        if self.out.len() + more > self.limit {
            return Err(StateFormatError::TooLong { limit: self.limit });
        }
        for part in parts {
            self.out.push_str(part);
        }
        Ok(())
    }
}
