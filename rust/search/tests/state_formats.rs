//! Conversions between the printed forms of proof states.

use ebm_search::state_format::StateFormat::{AsGiven, Burnqed, Lean, Pantograph};
use ebm_search::state_format::{
    StateFormat, StateFormatError, convert, detect, overlap, source_format,
};
use proptest::prelude::*;

fn must(text: &str, from: StateFormat, to: StateFormat) -> String {
    convert(text, from, to).unwrap_or_else(|error| panic!("{text:?}: {error}")).into_owned()
}

const PRINTED: &str = "case succ.inl
α : Type u_1
inst✝¹ inst✝ : Inhabited α
a «b c» : ℕ
f : ℕ → ℕ := fun n => n + 1
h :
  a = «b c» ∧
    f a = 1
⊢ f a =
    2

case succ.inr
⊢ True";

#[test]
fn one_goal_has_three_texts() {
    let pantograph = must(PRINTED, Lean, Pantograph);
    assert_eq!(
        pantograph,
        "case succ.inl
α : Type u_1
inst✝¹ : Inhabited α
inst✝ : Inhabited α
a : ℕ
«b c» : ℕ
f : ℕ → ℕ := fun n => n + 1
h :
  a = «b c» ∧
    f a = 1
⊢ f a =
    2

case succ.inr
⊢ True"
    );
    assert_eq!(must(&pantograph, Pantograph, Lean), PRINTED);
    let burnqed = must(PRINTED, Lean, Burnqed);
    assert_eq!(burnqed, must(&pantograph, Pantograph, Burnqed));
    assert!(burnqed.starts_with("α : Type u_1\ninst✝¹ : Inhabited α\n"));
    assert!(burnqed.contains("f : ℕ → ℕ\nh :\n  a ="));
    assert!(burnqed.ends_with("⊢ f a =\n    2\n\n⊢ True"));
}

#[test]
fn values_end_types_only_where_they_are_values() {
    for (variable, without) in [
        ("x : ℕ := 1", "x : ℕ"),
        ("x : ℕ := ⋯", "x : ℕ"),
        ("x : T :=\n  long value", "x : T"),
        ("x : ℕ := let y := 1; y", "x : ℕ"),
        ("h : let y := 1; y = 1", "h : let y := 1; y = 1"),
        ("h : have y := 1;\ny = 1", "h : have y := 1;\ny = 1"),
        ("x : let n := 2; Fin n := 0", "x : let n := 2; Fin n"),
        ("h : s = { x := 1, y := 2 }", "h : s = { x := 1, y := 2 }"),
        ("h : ∀ (a : ℕ := 1), a = a", "h : ∀ (a : ℕ := 1), a = a"),
        ("h : s = \" := (\"", "h : s = \" := (\""),
        ("c : Char := '('", "c : Char"),
        ("h : c = '\\''", "h : c = '\\''"),
        ("h' : a' = b' := h₁'", "h' : a' = b'"),
    ] {
        let text = format!("{variable}\n⊢ True");
        assert_eq!(must(&text, Lean, Burnqed), format!("{without}\n⊢ True"), "{variable}");
    }
    for unclear in ["x : A) := 1", "x : (A := 1", "x : a = \" := 1", "h : do x := 1; x"] {
        let text = format!("{unclear}\n⊢ True");
        let error = convert(&text, Lean, Burnqed);
        assert_eq!(error, Err(StateFormatError::UnclearValue { line: 1 }), "{unclear}");
    }
}

#[test]
fn what_is_missing_is_refused() {
    for to in [Lean, Pantograph] {
        let error = convert("a : ℕ\n⊢ a = a", Burnqed, to);
        assert_eq!(error, Err(StateFormatError::Dropped { from: Burnqed, to }));
    }
    let error = convert("a b : ℕ\n⊢ a = b", Pantograph, Lean).unwrap_err().to_string();
    assert_eq!(error, "line 1: has variables that share a type, which pantograph-1 does not print");
    let error = convert("a : ℕ\n⊢ a = a\n\ncase h\n⊢ True", Burnqed, Burnqed).unwrap_err();
    assert_eq!(error.to_string(), "line 4: has the name of a goal, which burnqed-1 does not print");
    let error = convert("a : ℕ := 1\n⊢ a = a", Burnqed, Burnqed).unwrap_err();
    assert_eq!(error.to_string(), "line 1: has a value, which burnqed-1 does not print");
    assert_eq!(convert("⊢ True", AsGiven, Lean), Err(StateFormatError::NoSource));
}

#[test]
fn what_is_no_proof_state_is_refused_and_kept_as_given() {
    for text in ["", "sorry", "no goals", "case h", "a : ℕ", "x : ℕ\n| x + 0"] {
        assert_eq!(convert(text, Lean, Pantograph), Err(StateFormatError::NoGoal), "{text:?}");
        assert_eq!(detect(text), []);
        assert_eq!(must(text, AsGiven, AsGiven), text);
    }
    for (text, error) in [
        ("sorry\n⊢ True", StateFormatError::Stray { line: 1 }),
        ("a : ℕ\n\n⊢ True", StateFormatError::NoTarget { line: 1 }),
        ("case a\ncase b\n⊢ True", StateFormatError::NoTarget { line: 1 }),
        ("⊢ True\n\nx : ℕ", StateFormatError::NoTarget { line: 3 }),
        ("⊢ True\n⊢ False", StateFormatError::Unseparated { line: 2 }),
        ("⊢ True\ncase h\n⊢ False", StateFormatError::Unseparated { line: 2 }),
    ] {
        assert_eq!(convert(text, Lean, Lean), Err(error), "{text:?}");
    }
}

#[test]
fn goals_without_variables_are_normalised() {
    // As `str` of PyPantograph's `Goal` prints them.
    assert_eq!(must("\n⊢ True", Pantograph, Pantograph), "⊢ True");
    assert_eq!(
        must("case h\n\n⊢ True\n\n\n⊢ False\n", Pantograph, Lean),
        "case h\n⊢ True\n\n⊢ False"
    );
}

#[test]
fn names_have_versions() -> Result<(), Box<dyn std::error::Error>> {
    for format in [AsGiven, Lean, Pantograph, Burnqed] {
        assert_eq!(format.name().parse::<StateFormat>()?, format);
        assert_eq!(format.option().parse::<StateFormat>()?, format);
        let json = serde_json::to_string(&format)?;
        assert_eq!(json, format!("{:?}", format.name()));
        assert_eq!(serde_json::from_str::<StateFormat>(&json)?, format);
    }
    assert!(serde_json::from_str::<StateFormat>("\"lean-2\"").is_err());
    let error = "Lean".parse::<StateFormat>().unwrap_err().to_string();
    assert_eq!(error, "state format \"Lean\": expected as-given, lean, pantograph or burnqed");
    Ok(())
}

#[test]
fn the_source_is_found_only_where_it_makes_no_difference() {
    let source = |texts: &[&str], to| source_format(None, to, texts.iter().copied());
    let (merged, named) = ("a b : ℕ\n⊢ a = b", "case h\nx : ℕ\n⊢ x = x");
    let (bare, equal) = ("x : ℕ\n⊢ x = x", "x : ℕ\ny : ℕ\n⊢ x = y");
    assert_eq!(source(&[merged, bare], Pantograph), Ok(Lean));
    assert_eq!(source(&[named, bare, "sorry"], Pantograph), Ok(Lean));
    assert_eq!(source(&[bare, merged, named], Burnqed), Ok(Lean));
    assert_eq!(source(&[merged, named], Lean), Ok(Lean));
    // All may be what is left of states whose names and values were dropped.
    assert!(matches!(source(&[bare, equal], Pantograph), Err(StateFormatError::Ambiguous { .. })));
    // Lean would have merged the variables, unless their types differ in what is not printed.
    assert!(matches!(source(&[named, equal], Lean), Err(StateFormatError::Ambiguous { .. })));
    assert!(matches!(source(&[merged, equal], Lean), Err(StateFormatError::Ambiguous { .. })));
    let given = |format, to| source_format(Some(format), to, [bare].into_iter());
    assert_eq!(given(Pantograph, Lean), Ok(Pantograph));
    assert_eq!(given(AsGiven, Lean), Err(StateFormatError::NoSource));
    assert_eq!(source(&[bare], AsGiven), Ok(AsGiven));
}

#[test]
fn an_overlap_says_what_converting_would_find() {
    let texts = ["a b : ℕ\n⊢ a = b", "case h\nx y : ℕ\n⊢ x = y", "⊢ True", "⊢ True", "sorry"];
    let held: Vec<String> = texts[..3].iter().map(|text| must(text, Lean, Pantograph)).collect();
    let found = overlap(&texts, None, |state| held.iter().any(|held| held == state));
    assert_eq!((found.states, found.found), (4, 1));
    assert_eq!(
        found.to_string(),
        "1 of 4 states are in the cache as printed; 3 would be, converted to pantograph form"
    );
    let hint = found.hint("c.parquet", Pantograph);
    assert_eq!(hint.as_deref(), Some("hint: --state-format pantograph"));
    let hint = found.hint("c.parquet", AsGiven).unwrap_or_default();
    assert!(
        hint.contains("`ebm-encode encode --cache c.parquet --state-format pantograph`"),
        "{hint}"
    );
    let all = overlap(&texts[..4], None, |_| true);
    assert_eq!((all.found, all.converted), (3, None));
    assert_eq!(all.to_string(), "3 of 3 states are in the cache as printed");
    // Here the texts do not show which form they are in.
    let bare = ["x : ℕ\n⊢ x = x", "x : ℕ\ny : ℕ\n⊢ x = y"];
    let found = overlap(&bare, None, |state| state.starts_with("x y"));
    let hint = found.hint("c", Lean);
    assert_eq!(hint.as_deref(), Some("hint: --state-format lean --states-in pantograph"));
}

#[test]
fn long_states_take_linear_time() {
    let lines =
        |count: usize| (0..count).fold(String::new(), |all, i| all + &format!("x{i} : ℕ\n"));
    let names = (0..20_000).map(|i| format!("x{i}")).collect::<Vec<_>>().join(" ");
    let many_lines = lines(12_000) + "⊢ True";
    let merged = format!("{names} : ℕ\n⊢ True");
    let deep = format!("x : {}ℕ{} := 1\n⊢ True", "(".repeat(60_000), ")".repeat(60_000));
    let wrapped = format!("h :\n{}⊢ True", "  p ∧\n".repeat(20_000));
    let lets = format!("h : {}True\n⊢ True", "let x := 1; ".repeat(10_000));
    let apart = "⊢ True\n\n".repeat(15_000);
    // A quadratic pass over one of these would take minutes.
    for text in [&many_lines, &merged, &deep, &wrapped, &lets, &apart] {
        assert!(text.len() > 110_000);
        for from in detect(text) {
            for to in StateFormat::PRINTED {
                let _ = convert(text, from, to);
            }
        }
    }
    let of = "p ∧ ".repeat(20_000) + "p";
    let hostile = format!("{names} : {of}\n⊢ True");
    assert!(matches!(convert(&hostile, Lean, Pantograph), Err(StateFormatError::TooLong { .. })));
}

/// A name, sometimes inaccessible or in guillemets. Without c, so that no `case` line comes of it.
fn name() -> impl Strategy<Value = String> {
    "[abd-zα-ω][abd-z0-9₁']{0,3}(✝[¹²]?)?|«[a-z ]{1,6}»"
}

fn a_type() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("ℕ".to_owned()),
        Just("let y := 1; y = 1".to_owned()),
        Just("s = { x := 1 }".to_owned()),
        // No keyword of Lean is made of these letters.
        "[A-Z]( → [A-Z]){0,2}(\n  [v-z]{1,4}){0,2}",
    ]
}

fn variable() -> impl Strategy<Value = String> {
    let names = prop::collection::vec(name(), 1..4);
    (names, a_type(), prop::option::of("[0-9]{1,3}")).prop_map(|(names, of, value)| match value {
        Some(value) => format!("{} : {of} := {value}", names[0]),
        None => format!("{} : {of}", names.join(" ")),
    })
}

/// A state as Lean prints it, though perhaps with neighbours that Lean would merge.
fn state() -> impl Strategy<Value = String> {
    let case = prop::option::of("case [a-z.✝]{1,6}");
    let goal = (case, prop::collection::vec(variable(), 0..5), a_type()).prop_map(
        |(case, variables, target)| {
            let lines = case.into_iter().chain(variables).chain([format!("⊢ {target}")]);
            lines.collect::<Vec<_>>().join("\n")
        },
    );
    prop::collection::vec(goal, 1..4).prop_map(|goals| goals.join("\n\n"))
}

fn targets(text: &str) -> Vec<&str> {
    text.split("\n\n").filter_map(|goal| goal.find('⊢').map(|at| &goal[at..])).collect()
}

proptest! {
    #[test]
    fn conversions_keep_goals_and_targets(text in state()) {
        prop_assert!(detect(&text).contains(&Lean));
        for to in StateFormat::PRINTED {
            let there = must(&text, Lean, to);
            prop_assert_eq!(targets(&there), targets(&text));
            prop_assert!(detect(&there).contains(&to), "{} {:?}", to, there);
            prop_assert_eq!(&must(&there, to, to), &there);
            prop_assert_eq!(must(&there, Lean, to), there);
        }
        prop_assert_eq!(must(&text, Lean, Lean), text);
    }

    #[test]
    fn ways_to_one_format_agree(text in state()) {
        let pantograph = must(&text, Lean, Pantograph);
        prop_assert_eq!(must(&pantograph, Pantograph, Burnqed), must(&text, Lean, Burnqed));
        let merged = must(&pantograph, Pantograph, Lean);
        prop_assert_eq!(must(&merged, Lean, Pantograph), pantograph);
    }

    #[test]
    fn any_text_is_converted_or_refused(text in "([⊢:=a-c «»✝\n\"'(){}]|case |let | := | : ){0,40}") {
        for from in StateFormat::PRINTED {
            for to in StateFormat::PRINTED {
                if let Ok(converted) = convert(&text, from, to) {
                    prop_assert_eq!(convert(&converted, to, to), Ok(converted.clone()));
                }
            }
        }
    }
}
