//! The text of goals, as `PyPantograph` prints a goal.

use std::fmt::Write;

use super::protocol::Goal;

/// Goals joined by a blank line. Each is `case NAME` where it has a name, a line for each variable,
/// `NAME : TYPE` or `NAME : TYPE := VALUE`, and `⊢ TARGET`.
pub(super) fn print(goals: &[Goal]) -> String {
    let mut text = String::new();
    for goal in goals {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        print_goal(goal, &mut text);
    }
    text
}

fn print_goal(goal: &Goal, text: &mut String) {
    if let Some(name) = &goal.user_name {
        let _ = writeln!(text, "case {name}");
    }
    for variable in &goal.vars {
        let name = variable.user_name.as_deref().unwrap_or("_");
        let _ = match &variable.value {
            Some(value) => writeln!(text, "{name} : {} := {}", variable.kind.pp, value.pp),
            None => writeln!(text, "{name} : {}", variable.kind.pp),
        };
    }
    let turnstile = if goal.fragment.as_deref() == Some("conv") { '|' } else { '⊢' };
    let _ = write!(text, "{turnstile} {}", goal.target.pp);
}
