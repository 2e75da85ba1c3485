//! Starts, the pool, stops, and what is left of processes.

use std::num::NonZeroUsize;
use std::thread;
use std::time::{Duration, Instant};

use ebm_search::environments::pantograph::{PantographEnvironment, PantographOptions};
use ebm_search::search::{Cancel, Control, Environment, EnvironmentError, StateId, Stop};
use rustix::process::{Pid, test_kill_process};

use super::support::*;

/// Far below all limits of `Lean::options`, and far above what a stop takes.
const SOON: Duration = Duration::from_secs(10);

fn unavailable(error: &EnvironmentError) -> String {
    assert!(matches!(error, EnvironmentError::Unavailable { .. }), "{error:?}");
    error.to_string()
}

fn is_alive(process: u32) -> bool {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    test_kill_process(process.unwrap()).is_ok()
}

/// What is killed may take a moment to go where nobody waits for it but the system.
fn assert_gone(processes: &[u32]) {
    let end = Instant::now() + SOON;
    while processes.iter().any(|&process| is_alive(process)) {
        assert!(Instant::now() < end, "still alive: {processes:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Cancels after the stand-in was asked `command` for the first time.
fn cancel_at(lean: &Lean, command: &str, cancel: &Cancel) -> Instant {
    while lean.requests(command).is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    let now = Instant::now();
    cancel.cancel();
    now
}

#[test]
fn a_late_start_with_noise_is_waited_for() {
    let lean = Lean::new(&["--ready-after", "700", "--noise-before-ready", "1000"]);
    open(&judge(&lean.environment(), &["intro p q"], "constructor"));
}

#[test]
fn a_start_that_takes_too_long_is_reported() {
    let lean = Lean::new(&["--ready-after", "60000"]);
    let options = lean.options().with_start_time(Duration::from_millis(300));
    let error = unavailable(&start_error(&PantographEnvironment::new(options).unwrap()));
    assert!(error.contains("was not ready after 300ms"), "{error}");
    assert!(error.contains("hint: allow more time to start"), "{error}");
}

#[test]
fn a_failed_import_is_reported() {
    let error = unavailable(&start_error(&Lean::new(&["--import-error"]).environment()));
    assert!(error.contains("unknown module prefix 'Mathlib'\nhint: build them"), "{error}");
}

#[test]
fn a_program_that_ends_or_is_missing_is_reported() {
    let lean = Lean::new(&[]).with_tree("no/such/tree.json".as_ref());
    let error = unavailable(&start_error(&lean.environment()));
    assert!(error.contains("exit status: 1"), "{error}");
    assert!(error.contains("No such file"), "the end of its stderr: {error}");

    let options = PantographOptions::new("no-such-repl");
    let error = unavailable(&start_error(&PantographEnvironment::new(options).unwrap()));
    assert!(error.contains("no-such-repl did not start"), "{error}");
    assert!(error.contains("hint: is Pantograph's `repl` built"), "{error}");
}

#[test]
fn the_working_folder_is_where_it_runs() {
    let lean = Lean::new(&[]).with_tree("tree.json".as_ref());
    std::fs::copy(TREE, lean.file("tree.json")).unwrap();
    let options = lean.options().with_working_folder(lean.file(""));
    let environment = PantographEnvironment::new(options).unwrap();
    open(&judge(&environment, &["intro p q"], "constructor"));
}

#[test]
fn more_searches_than_workers_wait_for_each_other() {
    let lean = Lean::new(&[]);
    let workers = NonZeroUsize::new(2).unwrap();
    let environment = PantographEnvironment::new(lean.options().with_workers(workers)).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| open(&judge(&environment, &["intro p q"], "constructor")));
        }
    });
    let mut processes = lean.processes();
    processes.sort_unstable();
    processes.dedup();
    assert!(processes.len() <= 2, "{processes:?}");
    drop(environment);
    assert_gone(&processes);
}

#[test]
fn a_worker_that_died_in_the_pool_is_not_leased() {
    // The reset is the first request of a second theorem.
    for fault in ["die", "garbage"] {
        let lean = Lean::new(&["--at", "reset", fault]);
        let environment = lean.environment();
        for _ in 0..3 {
            open(&judge(&environment, &["intro p q"], "constructor"));
        }
        assert_eq!(lean.processes().len(), 3);
    }
}

#[test]
fn a_worker_that_talked_nonsense_is_not_leased_again() {
    // It lives, and would answer the next theorem as if nothing had happened.
    let lean = Lean::new(&["--at", "bad", "garbage"]);
    let environment = lean.environment();
    reason(&judge(&environment, &["intro p q"], "bad"));
    assert_eq!(lean.processes().len(), 2);
    open(&judge(&environment, &["intro p q"], "constructor"));
    assert_eq!(lean.processes().len(), 3);
}

#[test]
fn a_theorem_begins_without_the_states_of_others() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    for _ in 0..2 {
        open(&judge(&environment, &["intro p q"], "constructor"));
    }
    assert_eq!(lean.requests("reset").len(), 1);
    let first = |request: &&String| request.contains("\"stateId\":0");
    assert_eq!(lean.requests("goal.tactic").iter().filter(first).count(), 2);
}

#[test]
fn a_stop_does_not_wait_for_a_start() {
    let lean = Lean::new(&["--ready-after", "60000"]);
    let environment = lean.environment();
    let cancel = Cancel::default();
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            cancel.cancel();
        });
        let theorem = theorem(SWAP);
        let error = environment.start(&theorem, &Control::new(cancel.clone())).err().unwrap();
        assert!(matches!(error, EnvironmentError::Stopped(Stop::Cancelled)), "{error:?}");
    });
    assert!(begin.elapsed() < SOON);
}

#[test]
fn a_stop_does_not_wait_for_a_tactic() {
    let lean = Lean::new(&["--at", "simp", "hang"]);
    let environment = lean.environment();
    let cancel = Cancel::default();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    thread::scope(|scope| {
        let cancelled = scope.spawn(|| cancel_at(&lean, "goal.tactic", &cancel));
        let stopped = Control::new(cancel.clone());
        let error = session.apply(StateId::ROOT, &tactics(&["simp"]), &stopped).unwrap_err();
        let end = Instant::now();
        assert!(matches!(error, EnvironmentError::Stopped(Stop::Cancelled)), "{error:?}");
        assert!(end.duration_since(cancelled.join().unwrap()) < SOON);
    });
    drop(session);
    drop(environment);
    assert_gone(&lean.processes());
}

#[test]
fn a_stop_does_not_wait_for_a_worker() {
    let lean = Lean::new(&[]);
    let environment = lean.environment();
    let theorem = theorem(SWAP);
    let holder = environment.start(&theorem, &control()).unwrap();
    let deadline = Some(Instant::now() + Duration::from_millis(100));
    let error = environment.start(&theorem, &control().with_deadline(deadline)).err().unwrap();
    assert!(matches!(error, EnvironmentError::Stopped(Stop::Time)), "{error:?}");
    drop(holder);
    assert!(environment.start(&theorem, &control()).is_ok());
}

#[test]
fn a_worker_outlives_a_theorem_that_was_stopped_in_a_tactic() {
    let lean = Lean::new(&["--at", "simp", "interrupt"]);
    let options = lean.options().with_tactic_time(Duration::from_millis(500));
    let environment = PantographEnvironment::new(options).unwrap();
    let theorem = theorem(SWAP);
    let (mut session, _) = environment.start(&theorem, &control()).unwrap();
    let deadline = Some(Instant::now() + Duration::from_millis(100));
    let stopped = control().with_deadline(deadline);
    let error = session.apply(StateId::ROOT, &tactics(&["simp"]), &stopped).unwrap_err();
    assert!(matches!(error, EnvironmentError::Stopped(Stop::Time)), "{error:?}");
    drop(session);
    // The answer that was owed is not taken for that of another request.
    open(&judge(&environment, &["intro p q"], "constructor"));
    assert_eq!(lean.processes().len(), 1);
}

#[test]
fn the_whole_group_of_a_process_is_ended() {
    // As `lake env repl` may: the REPL is the child of a child.
    let lean = Lean::new(&["--at", "simp", "hang"]);
    let script = "\"$0\" \"$@\"; exit 3";
    let program = stand_in().display().to_string();
    let arguments = ["-c", script, &program].map(str::to_owned);
    let arguments = arguments.into_iter().chain(lean.switches().iter().cloned());
    let options = PantographOptions::new("sh").with_arguments(arguments);
    let options = options.with_tactic_time(Duration::from_millis(300));
    let options = options.with_grace(Duration::from_secs(2));
    let environment = PantographEnvironment::new(options).unwrap();
    let applied = judge(&environment, &["intro p q"], "simp");
    assert!(reason(&applied).contains("killed the process twice"), "{applied:?}");
    open(&judge(&environment, &["intro p q"], "constructor"));
    drop(environment);
    assert_eq!(lean.processes().len(), 3);
    assert_gone(&lean.processes());
}
