//! Each false proof that was seen in public: the stand-in offers it, a careless client believes it, and
//! the environment refuses it.

use ebm_search::search::{Applied, Environment, EnvironmentError, StateId};
use serde_json::json;

use super::support::*;

/// The careless client sees a proof, and the environment refuses with these words.
fn refused(switches: &[&str], path: &[&str], tactic: &str, words: &str) {
    let lean = Lean::new(switches);
    let whole: Vec<_> = path.iter().copied().chain([tactic]).collect();
    assert!(looks_proved(&lean.careless().walk(&whole)), "the stand-in offers no bait");
    let applied = judge(&lean.environment(), path, tactic);
    assert!(reason(&applied).contains(words), "{applied:?}");
}

#[test]
fn null_goals_are_no_proof() {
    refused(&["--at", "skip", "nulls"], &["intro p q"], "skip", "neither goals nor a message");
}

#[test]
fn absent_goals_of_a_new_state_are_no_proof() {
    let switches = ["--at", "constructor", "absent"];
    refused(&switches, &["intro p q"], "constructor", "neither goals nor a message");
}

#[test]
fn a_refused_tactic_without_goals_is_no_proof() {
    refused(&[], &["intro p q"], "exact nonsense", "Tactic `exact nonsense` failed");
}

#[test]
fn a_text_that_does_not_parse_is_no_proof() {
    refused(&[], &["intro p q"], "", "unexpected end of input");
}

#[test]
fn sorry_and_admit_are_no_proof() {
    for tactic in ["sorry", "admit", "constructor\nsorry"] {
        refused(&[], &["intro p q"], tactic, "it uses sorry");
    }
}

#[test]
fn sorry_in_the_term_alone_is_no_proof() {
    refused(&[], &["intro p q"], "exact hidden_sorry", "the proof uses sorry");
}

#[test]
fn something_unsafe_is_no_proof() {
    refused(&[], &["intro p q"], "exact unsafe_cast", "unsafe");
}

#[test]
fn an_open_metavariable_is_no_proof() {
    refused(&[], &["intro p q"], "exact ?_", "parts of the proof are missing");
}

#[test]
fn an_error_among_the_messages_overturns_a_step() {
    refused(&[], &["intro p q"], "exact overturned", "declaration has free variables");
}

#[test]
fn flags_that_are_not_said_are_no_proof() {
    let switches = ["--no-root-flags"];
    refused(&switches, &["intro p q"], "exact wrong_in_a_file", "no goals are left, but");
}

#[test]
fn a_bullet_closes_its_goal_only() {
    // Without automatic mode the other goal sleeps, and no goal is shown.
    let lean = Lean::new(&[]);
    let (path, bullet) = (["intro p q", "constructor"], "· trivial_left");
    let mut careless = lean.careless();
    careless.ask("options.set", &json!({"automaticMode": false}));
    assert!(looks_proved(&careless.walk(&["intro p q", "constructor", bullet])));

    let applied = judge(&lean.environment(), &path, bullet);
    let Applied::Open { text, .. } = applied else { panic!("{applied:?}") };
    assert_eq!(&*text, "case right\np : Prop\nq : Prop\n⊢ q");
}

#[test]
fn goals_may_sleep_where_automatic_mode_is_a_lie() {
    let lean = Lean::new(&["--lies-automatic"]);
    let (path, bullet) = (["intro p q", "constructor"], "· trivial_left");
    assert!(looks_proved(&lean.careless().walk(&["intro p q", "constructor", bullet])));
    let applied = judge(&lean.environment(), &path, bullet);
    assert!(reason(&applied).contains("parts of the proof are missing"), "{applied:?}");
}

#[test]
fn a_process_without_automatic_mode_is_not_used() {
    let error = start_error(&Lean::new(&["--stays-manual"]).environment());
    let EnvironmentError::Unavailable { reason, .. } = error else { panic!("{error:?}") };
    assert!(reason.contains("automaticMode is not on"), "{reason}");
}

#[test]
fn a_finished_proof_is_not_taken_for_the_root() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem("∀ (n : Nat), let m := n; m = n");
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &["intro n m"]);
    assert_ne!(state, StateId::ROOT);
    assert_eq!(apply(&mut *session, state, "rfl"), Applied::Finished);
    // The root is what it was, and no number was given to what is finished.
    let again = apply(&mut *session, StateId::ROOT, "intro n m");
    assert_eq!(open(&again), StateId(state.0 + 1));
}
