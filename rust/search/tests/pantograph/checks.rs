//! Checks of whole proofs.

use std::collections::HashSet;

use ebm_search::search::{Applied, Environment, Theorem, Verdict};
use serde_json::json;

use super::support::*;

const SWAP_PROOF: [&str; 6] =
    ["intro p q h", "cases h", "apply Or.inr", "assumption", "left", "assumption"];

fn refused(verdict: &Verdict, words: &str) {
    match verdict {
        Verdict::Refused(reason) => assert!(reason.contains(words), "{reason}"),
        Verdict::Proof => panic!("{words}: it was taken for a proof"),
    }
}

#[test]
fn a_proof_is_checked_in_a_process_without_searches() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let (last, path) = SWAP_PROOF.split_last().unwrap();
    let state = walk(&mut *session, path);
    assert_eq!(apply(&mut *session, state, last), Applied::Finished);
    // The session keeps its only worker meanwhile.
    let searched: HashSet<_> = lean.processes().into_iter().collect();
    assert_eq!(verdict(&environment, &theorem, &SWAP_PROOF), Verdict::Proof);
    let both: HashSet<_> = lean.processes().into_iter().collect();
    assert_eq!((searched.len(), both.len()), (1, 2));
    // Nor does a check take a worker that a search gave back.
    drop(session);
    assert_eq!(verdict(&environment, &theorem, &SWAP_PROOF), Verdict::Proof);
    assert_eq!(lean.processes().into_iter().collect::<HashSet<_>>().len(), 3);

    let file = lean.requests("frontend.process").remove(0);
    let payload: serde_json::Value =
        serde_json::from_str(file.strip_prefix("frontend.process ").unwrap()).unwrap();
    assert_eq!(
        payload["file"],
        "theorem ebm_search_checked_proof : ∀ (p q : Prop), p ∨ q → q ∨ p := by\n  intro p q h\n  \
         cases h\n  apply Or.inr\n  assumption\n  left\n  assumption\n\
         #print axioms ebm_search_checked_proof\n"
    );
}

#[test]
fn each_proof_has_its_verdict() {
    let lean = Lean::new(&[]);
    let short = &SWAP_PROOF[..5];
    let long: Vec<_> = SWAP_PROOF.iter().copied().chain(["assumption"]).collect();
    let wrong = ["intro p q h", "cases h", "exact h"];
    let proofs = [&SWAP_PROOF[..], short, &long, &wrong, &[], &SWAP_PROOF].map(tactics);
    let verdicts = lean.environment().verify(&theorem(SWAP), &proofs, &control()).unwrap();
    assert_eq!((&verdicts[0], &verdicts[5]), (&Verdict::Proof, &Verdict::Proof));
    refused(&verdicts[1], "it leaves goals");
    refused(&verdicts[2], "1 tactics follow after its last goal");
    refused(&verdicts[3], "tactic 3: Unknown identifier `h`");
    refused(&verdicts[4], "no goals are left, but");
    assert_eq!(lean.processes().len(), 1);
}

#[test]
fn what_only_a_file_shows_is_refused() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let cases = [
        ("exact wrong_in_a_file", "declaration type mismatch"),
        ("exact by_axiom", "it depends on Anything.goes"),
        ("exact hidden_axiom_of_sorry", "it depends on sorryAx"),
        ("exact quiet_sorry", "declaration uses `sorry`"),
    ];
    for (tactic, words) in cases {
        // Step by step all is well, with every flag as it should be.
        assert_eq!(judge(&environment, &["intro p q"], tactic), Applied::Finished);
        refused(&verdict(&environment, &theorem(FALSE_THEOREM), &["intro p q", tactic]), words);
    }
}

#[test]
fn sorry_in_a_file_is_refused() {
    let lean = Lean::new(&[]);
    let mut careless = lean.careless();
    let file =
        format!("theorem t : {FALSE_THEOREM} := by\n  intro p q\n  sorry\n#print axioms t\n");
    let answer = careless.ask("frontend.process", &json!({"file": file}));
    let messages = answer["units"].to_string();
    // A warning, not an error: whoever looks for errors takes it.
    assert!(messages.contains("declaration uses 'sorry'") && !messages.contains("\"error\""));
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    refused(&verdict(&environment, &theorem(FALSE_THEOREM), &["intro p q", "sorry"]), "sorry");
}

#[test]
fn a_tactic_that_holds_a_command_is_refused() {
    let tactic = "exact smuggled\nmacro \"#print\" \"axioms\" ident : command => `(#eval \"none\")";
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    assert_eq!(judge(&environment, &["intro p q"], tactic), Applied::Finished);
    let verdict = verdict(&environment, &theorem(FALSE_THEOREM), &["intro p q", tactic]);
    refused(&verdict, "starts another command");
}

#[test]
fn silence_about_the_axioms_is_refused() {
    let lean = Lean::new(&["--silent-file"]);
    let environment = lean.environment();
    let verdict = verdict(&environment, &theorem(SWAP), &SWAP_PROOF);
    refused(&verdict, "Lean did not say on which axioms it depends");
}

#[test]
fn the_three_axioms_of_lean_are_allowed() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem("(p : Prop) : p ∨ ¬p");
    let proof = ["intro p", "exact Classical.em p"];
    assert_eq!(verdict(&environment, &theorem, &proof), Verdict::Proof);
}

#[test]
fn a_theorem_of_the_library_must_not_prove_itself() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = Theorem::named("excluded_middle");
    let circular = ["intro p", "exact excluded_middle p"];
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let state = walk(&mut *session, &circular[..1]);
    assert_eq!(apply(&mut *session, state, circular[1]), Applied::Finished);
    refused(&verdict(&environment, &theorem, &circular), "it uses the theorem itself");
    let proof = ["intro p", "exact Classical.em p"];
    assert_eq!(verdict(&environment, &theorem, &proof), Verdict::Proof);
}

#[test]
fn a_check_survives_the_loss_of_its_process() {
    let lean = Lean::once(&["--at", "frontend.process", "die"]);
    assert_eq!(verdict(&lean.environment(), &theorem(SWAP), &SWAP_PROOF), Verdict::Proof);
    let lean = Lean::new(&["--at", "frontend.process", "die"]);
    let verdict = verdict(&lean.environment(), &theorem(SWAP), &SWAP_PROOF);
    refused(&verdict, "its check killed the process twice");
}
