//! Processes that die, hang or talk nonsense in the middle of a search.

use std::time::Duration;

use ebm_search::environments::pantograph::PantographEnvironment;
use ebm_search::search::{Applied, Environment, EnvironmentError, StateId};
use serde_json::Value;

use super::support::*;

const PATH: [&str; 3] = ["intro p q h", "cases h", "apply Or.inr"];

/// Runs a whole proof, and the number of processes that it took.
fn prove(lean: &Lean, environment: &PantographEnvironment) -> usize {
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &[&PATH[..], &["assumption", "left"]].concat());
    assert_eq!(apply(&mut *session, state, "assumption"), Applied::Finished);
    lean.processes().len()
}

#[test]
fn a_search_does_not_see_the_loss_of_its_process() {
    for fault in ["die", "die-torn", "end", "garbage", "forget"] {
        let lean = Lean::once(&["--at", "apply Or.inr", fault]);
        assert_eq!(prove(&lean, &lean.environment()), 2, "{fault}");
        // The states were brought back by their tactics, and the tactic was tried again.
        assert_eq!(lean.requests("goal.start").len(), 2, "{fault}");
        let tried = |tactic: &str| {
            let tactic = format!("\"tactic\":\"{tactic}\"");
            lean.requests("goal.tactic").iter().filter(|request| request.contains(&tactic)).count()
        };
        assert_eq!([tried("intro p q h"), tried("cases h"), tried("apply Or.inr")], [2; 3]);
        assert_eq!(tried("left"), 1);
    }
}

#[test]
fn a_line_that_nobody_asked_for_is_no_answer() {
    let lean = Lean::once(&["--at", "apply Or.inr", "extra"]);
    // Taken for one, the answers of `assumption` and all that follow would be those of others.
    prove(&lean, &lean.environment());
}

#[test]
fn a_tactic_that_kills_its_process_twice_is_refused() {
    for (fault, words) in [
        ("die", "signal: 6"),
        ("die-torn", "exit status: 7) in the middle of a line"),
        ("end", "exit status: 0"),
        ("garbage", "no JSON: \"uncaught exception"),
    ] {
        let lean = Lean::new(&["--at", "bad", fault]);
        let environment = lean.environment();
        let theorem = theorem(SWAP);
        let (mut session, _) = environment.start(&theorem, &control()).unwrap();
        let state = walk(&mut *session, &PATH);
        let applied = apply(&mut *session, state, "bad");
        assert!(reason(&applied).starts_with("the tactic killed the process twice: "));
        assert!(reason(&applied).contains(words), "{applied:?}");
        // The theorem goes on.
        open(&apply(&mut *session, state, "assumption"));
        assert_eq!(lean.processes().len(), 3, "{fault}");
    }
}

#[test]
fn a_silent_process_is_replaced() {
    let short = |lean: &Lean| {
        let times = lean.options().with_tactic_time(Duration::from_millis(300));
        PantographEnvironment::new(times.with_grace(Duration::from_secs(2))).unwrap()
    };
    let lean = Lean::once(&["--at", "apply Or.inr", "hang"]);
    assert_eq!(prove(&lean, &short(&lean)), 2);

    let lean = Lean::new(&["--at", "bad", "hang"]);
    let applied = judge(&short(&lean), &["intro p q"], "bad");
    assert_eq!(reason(&applied), "the tactic killed the process twice: no answer within 2.3s");
}

#[test]
fn an_interrupted_tactic_leaves_the_process_alive() {
    let lean = Lean::new(&["--at", "simp", "interrupt"]);
    let options = lean.options().with_tactic_time(Duration::from_millis(200));
    let environment = PantographEnvironment::new(options).unwrap();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    assert!(lean.requests("options.set")[0].contains("\"timeout\":200"));
    let applied = apply(&mut *session, StateId::ROOT, "simp");
    assert_eq!(reason(&applied), "not done within 200ms");
    walk(&mut *session, &PATH);
    assert_eq!(lean.processes().len(), 1);
}

#[test]
fn a_long_line_is_read_and_one_beyond_the_limit_is_not() {
    let lean = Lean::new(&["--at", "apply Or.inr", "long=2000000"]);
    assert_eq!(prove(&lean, &lean.environment()), 1);

    let lean = Lean::once(&["--at", "apply Or.inr", "long=2000000"]);
    let options = lean.options().with_answer_bytes(1_000_000);
    assert_eq!(prove(&lean, &PantographEnvironment::new(options).unwrap()), 2);

    let lean = Lean::new(&["--at", "bad", "long=2000000"]);
    let options = lean.options().with_answer_bytes(1_000_000);
    let applied = judge(&PantographEnvironment::new(options).unwrap(), &["intro p q"], "bad");
    assert!(reason(&applied).contains("an answer of more than 1000000 bytes\nhint: "));
}

#[test]
fn megabytes_of_stderr_do_not_block() {
    let lean = Lean::new(&["--stderr", "2000000"]);
    assert_eq!(prove(&lean, &lean.environment()), 1);
}

#[test]
fn a_death_is_reported_with_the_end_of_stderr() {
    let lean = Lean::new(&["--stderr", "100000", "--at", "bad", "die"]);
    let applied = judge(&lean.environment(), &["intro p q"], "bad");
    let reason = reason(&applied);
    assert!(reason.contains("PANIC at Lean.Meta"), "{reason}");
    assert!(reason.len() < 6000, "{} bytes", reason.len());
}

#[test]
fn disposed_states_are_still_the_way_to_others() {
    let lean = Lean::once(&["--at", "assumption", "die"]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let first = walk(&mut *session, &PATH[..1]);
    let second = open(&apply(&mut *session, first, "cases h"));
    let third = open(&apply(&mut *session, second, "apply Or.inr"));
    session.dispose(first);
    session.dispose(second);
    open(&apply(&mut *session, third, "assumption"));
    assert_eq!(lean.processes().len(), 2);
}

#[test]
fn a_state_that_comes_back_as_another_is_refused() {
    let lean = Lean::once(&["--at", "assumption", "die"]);
    let tree = lean.file("tree.json");
    std::fs::copy(TREE, &tree).unwrap();
    let lean = lean.with_tree(&tree);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &PATH);
    // The process that replaces the first reads another library.
    let mut changed: Value = serde_json::from_slice(&std::fs::read(TREE).unwrap()).unwrap();
    let theorems = changed["theorems"].as_array_mut().unwrap();
    let swap = theorems.iter_mut().find(|theorem| theorem["name"] == "swap").unwrap();
    swap["states"][3][0]["target"] = "p ∧ p".into();
    std::fs::write(&tree, changed.to_string()).unwrap();
    let applied = apply(&mut *session, state, "assumption");
    assert!(reason(&applied).contains("could not be brought back"), "{applied:?}");
    assert!(reason(&applied).contains("its goals are others"), "{applied:?}");
    // Others are as they were.
    walk(&mut *session, &PATH[..2]);
}

#[test]
fn a_start_that_kills_its_process_is_tried_twice() {
    let lean = Lean::once(&["--at", "goal.start", "die"]);
    assert_eq!(prove(&lean, &lean.environment()), 2);
    let error = start_error(&Lean::new(&["--at", "goal.start", "die"]).environment());
    assert!(matches!(error, EnvironmentError::Theorem { .. }), "{error:?}");
    assert!(error.to_string().contains("its start killed the process twice"), "{error}");
}

#[test]
fn another_protocol_is_an_error_and_no_refusal() {
    let lean = Lean::new(&["--at", "cases h", "shape"]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &PATH[..1]);
    let error = session.apply(state, &tactics(&["cases h"]), &control()).unwrap_err();
    assert!(matches!(error, EnvironmentError::Failed { .. }), "{error:?}");
    assert!(error.to_string().contains("hint: this version of Pantograph"), "{error}");
}
