//! What a search sees: texts, states, refusals.

use std::time::Duration;

use ebm_search::environments::pantograph::{Framing, PantographEnvironment, PantographOptions};
use ebm_search::search::{Applied, Environment, EnvironmentError, StateId, Theorem};
use serde_json::{Value, json};

use super::support::*;

fn recorded() -> Vec<Value> {
    let tree: Value = serde_json::from_slice(&std::fs::read(TREE).unwrap()).unwrap();
    tree["theorems"].as_array().unwrap().clone()
}

/// The text of recorded goals, by another way than the environment's.
fn text(goals: &Value) -> String {
    let mut blocks = Vec::new();
    for goal in goals.as_array().unwrap() {
        let mut lines = Vec::new();
        if let Some(name) = goal["userName"].as_str() {
            lines.push(format!("case {name}"));
        }
        for var in goal["vars"].as_array().unwrap() {
            let value = var["value"].as_str().map(|value| format!(" := {value}"));
            let (name, kind) = (var["userName"].as_str().unwrap(), var["type"].as_str().unwrap());
            lines.push(format!("{name} : {kind}{}", value.unwrap_or_default()));
        }
        lines.push(format!("⊢ {}", goal["target"].as_str().unwrap()));
        blocks.push(lines.join("\n"));
    }
    blocks.join("\n\n")
}

#[test]
fn recorded_searches_come_back_as_they_were() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let mut seen = 0;
    for recorded in recorded() {
        let theorem = Theorem::named("t").with_statement(recorded["type"].as_str().unwrap());
        let (mut session, root) = environment.start(&theorem, &control()).unwrap();
        let states = recorded["states"].as_array().unwrap();
        assert_eq!(*root, text(&states[0]));
        let mut known = vec![None; states.len()];
        known[0] = Some(StateId::ROOT);
        for step in recorded["steps"].as_array().unwrap() {
            let plain = step.as_object().unwrap().keys();
            let from = usize::try_from(step["from"].as_u64().unwrap()).unwrap();
            let (Some(from), 3) = (known[from], plain.count()) else { continue };
            let Some(to) = step["to"].as_u64() else { continue };
            let to = usize::try_from(to).unwrap();
            match apply(&mut *session, from, step["tactic"].as_str().unwrap()) {
                Applied::Open { state, text: printed } => {
                    assert_eq!(*printed, text(&states[to]));
                    known[to].get_or_insert(state);
                }
                Applied::Finished => assert_eq!(states[to], json!([])),
                Applied::Refused(reason) => panic!("{step}: {reason}"),
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen} steps");
    assert_eq!(lean.processes().len(), 1, "one process serves theorem after theorem");
}

#[test]
fn a_state_is_printed_as_pypantograph_prints_it() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let swap = theorem(SWAP);
    let (mut session, root) = environment.start(&swap, &control()).unwrap();
    assert_eq!(&*root, "⊢ ∀ (p q : Prop), p ∨ q → q ∨ p");
    let state = walk(&mut *session, &["intro p q h"]);
    let Applied::Open { text, .. } = apply(&mut *session, state, "cases h") else { panic!() };
    assert_eq!(
        &*text,
        "case inl\np : Prop\nq : Prop\nh✝ : p\n⊢ q ∨ p\n\ncase inr\np : Prop\nq : Prop\nh✝ : q\n⊢ q ∨ p"
    );
    drop(session);
    let value = theorem("∀ (n : Nat), let m := n; m = n");
    let (mut session, _) = environment.start(&value, &control()).unwrap();
    let Applied::Open { text, .. } = apply(&mut *session, StateId::ROOT, "intro n m") else {
        panic!()
    };
    assert_eq!(&*text, "n : Nat\nm : Nat := n\n⊢ m = n");
}

#[test]
fn answers_come_in_the_order_of_the_tactics() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &["intro p q h", "cases h"]);
    let all = tactics(&["exact h", "apply Or.inr", "exact", "apply Or.inr\nassumption"]);
    let applied = session.apply(state, &all, &control()).unwrap();
    assert_eq!(reason(&applied[0]), "Unknown identifier `h`");
    open(&applied[1]);
    assert!(reason(&applied[2]).contains("unexpected end of input"));
    let Applied::Open { text, .. } = &applied[3] else { panic!("{applied:?}") };
    assert_eq!(&**text, "case inr\np : Prop\nq : Prop\nh✝ : q\n⊢ q ∨ p");
    // Other errors of Lean refuse a tactic too.
    let lean = Lean::new(&["--at", "deep", "core"]);
    let applied = judge(&lean.environment(), &["intro p q"], "deep");
    assert!(reason(&applied).contains("maximum recursion depth"), "{applied:?}");
}

#[test]
fn statements_are_types_or_binders_with_a_type() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let cases = [
        (SWAP, SWAP),
        ("(p q : Prop) : p ∨ q → q ∨ p", SWAP),
        (": ∀ (p q : Prop), p ∨ q → q ∨ p", SWAP),
        (
            "(M : Type) (s : M → M) (h : ∀ (z : M), s (s z) = z) : ∀ (z : M), s (s (s (s z))) = z",
            "∀ (M : Type) (s : M → M) (h : ∀ (z : M), s (s z) = z), ∀ (z : M), s (s (s (s z))) = z",
        ),
    ];
    for (statement, closed) in cases {
        let theorem = theorem(statement);
        let (_, root) = environment.start(&theorem, &control()).unwrap();
        assert_eq!(*root, format!("⊢ {closed}"));
    }
    // Without a statement, the library knows it.
    let named = Theorem::named("swap");
    let (_, root) = environment.start(&named, &control()).unwrap();
    assert_eq!(*root, format!("⊢ {SWAP}"));
}

#[test]
fn a_theorem_that_cannot_start_says_why() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let cases = [
        (theorem("∀ (p : Prop, p"), "cannot read"),
        (theorem("(p ∧ q) → p"), "cannot read (p ∧ q) → p"),
        (Theorem::named("unknown"), "Symbol not found: unknown"),
    ];
    for (theorem, words) in cases {
        let error = environment.start(&theorem, &control()).err().unwrap();
        let EnvironmentError::Theorem { theorem: name, reason } = error else {
            panic!("{error:?}")
        };
        assert_eq!(name, theorem.name);
        assert!(reason.contains(words), "{reason}");
    }
    // It does not stand in the way of others.
    assert!(environment.start(&theorem(SWAP), &control()).is_ok());
}

#[test]
fn requests_have_two_forms() {
    for (framing, start) in [(Framing::Command, "goal.start {"), (Framing::Json, "{\"cmd\":")] {
        let lean = Lean::new(&[]);
        let environment = PantographEnvironment::new(lean.options().with_framing(framing)).unwrap();
        let applied = judge(&environment, &["intro p q"], "constructor");
        open(&applied);
        assert!(!lean.requests(start).is_empty(), "{:?}", lean.log());
        let json = lean.log().iter().filter(|(_, request)| request.starts_with('{')).count();
        assert_eq!(json, if framing == Framing::Json { lean.log().len() } else { 0 });
    }
}

#[test]
fn states_are_deleted_in_batches() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem("(p : Prop) : p ∨ ¬p");
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let parent = walk(&mut *session, &["intro p"]);
    for _ in 0..150 {
        let state = open(&apply(&mut *session, parent, "skip"));
        session.dispose(state);
    }
    let deleted = lean.requests("goal.delete");
    assert_eq!(deleted.len(), 2);
    let ids: Value = serde_json::from_str(deleted[0].split_once(' ').unwrap().1).unwrap();
    assert_eq!(ids["stateIds"].as_array().unwrap().len(), 64);
    // Others are still there.
    assert_eq!(apply(&mut *session, parent, "exact Classical.em p"), Applied::Finished);
}

#[test]
fn a_deleted_state_is_an_index_error_in_the_stand_in() {
    let lean = Lean::new(&[]);
    let mut careless = lean.careless();
    careless.walk(&["intro p q"]);
    careless.ask("goal.delete", &json!({"stateIds": [1]}));
    let answer = careless.ask("goal.tactic", &json!({"stateId": 1, "tactic": "constructor"}));
    assert_eq!(answer, json!({"error": "index", "desc": "Invalid state index 1"}));
    assert_eq!(careless.ask("stat", &json!({})), json!({"nGoals": 1}));
    assert_eq!(careless.ask("reset", &json!({})), json!({"nGoals": 1}));
    // Numbers start again.
    assert_eq!(careless.ask("goal.start", &json!({"expr": SWAP}))["stateId"], 0);
    assert_eq!(careless.ask("nope", &json!({}))["error"], "command");
    careless.send(""); // the end of the REPL
    assert!(careless.ends());
}

#[test]
fn a_disposed_or_unknown_state_is_an_error() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &["intro p q h"]);
    session.dispose(state);
    for state in [state, StateId(77)] {
        let error = session.apply(state, &tactics(&["cases h"]), &control()).unwrap_err();
        assert!(error.to_string().contains("unknown, or was disposed"), "{error}");
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let options = || PantographOptions::new("repl");
    let cases = [
        (options().with_tactic_time(Duration::ZERO), "tactic_time"),
        (options().with_check_time(Duration::from_micros(10)), "check_time"),
        (options().with_answer_bytes(0), "answer_bytes"),
    ];
    for (options, word) in cases {
        let error = PantographEnvironment::new(options).unwrap_err();
        assert!(error.to_string().starts_with(&format!("pantograph: {word}")), "{error}");
    }
}
