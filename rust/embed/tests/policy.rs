//! A policy in Python, asked by many threads, in good and in bad weather.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebm_embed::{Decoding, EmbedError, PythonEncoder, PythonPolicy, PythonPolicyOptions};
use ebm_encoder::{Coalescer, CoalescerOptions, Encoder};
use ebm_search::search::{Cancel, Control, Policy, PolicyError, Proposal, Query, Stop};
use pyo3::prelude::*;
use support::{difference, model, options, python};

const STATES: [&str; 5] =
    ["n : ℕ\n⊢ n + 0 = n", "⊢ True", "n : ℕ\n⊢ n = n", "⊢ True ∧ True", "p : Prop\nh : p\n⊢ p"];

/// Bad weather comes with the words of a state.
const WEATHER: &std::ffi::CStr = cr#"
import builtins
import time
from ebm_encode.policy.tactics import TacticPolicy
builtins.plain_policy = TacticPolicy
builtins.asked = asked = []
# Not `right`: the encoder's weather has a function of that name in the same module.
right_tactics = TacticPolicy.propose
def propose(self, states, **options):
    asked.append("MANY" in states[0])
    if any("RAISE" in state for state in states):
        raise ValueError("a state is poisoned")
    if any("SLOW" in state for state in states):
        time.sleep(1)
    return right_tactics(self, states, **options)
TacticPolicy.propose = propose
"#;

/// Frequent endings of what a random model writes.
fn sampling() -> PythonPolicyOptions {
    let stop = ["e", "n", "\n", "∀"];
    PythonPolicyOptions::default().with_samples(4).with_max_new_tokens(16).with_stop(stop)
}

fn weather() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        python();
        Python::attach(|py| py.run(WEATHER, None, None)).unwrap();
    });
}

fn policy(options: PythonPolicyOptions) -> PythonPolicy {
    weather();
    PythonPolicy::load(python(), &support::options(), options).unwrap()
}

fn propose(policy: &PythonPolicy, states: &[&str]) -> Result<Vec<Proposal>, PolicyError> {
    let queries: Vec<Query<'_>> = states.iter().map(|state| Query::new("t", state)).collect();
    policy.propose(&queries, &Control::default())
}

fn plain(proposal: &Proposal) -> Vec<(String, f64)> {
    let candidates = proposal.as_ref().unwrap().iter();
    candidates.map(|found| (found.tactic.to_string(), found.log_prob)).collect()
}

/// The same tactics, of the same log-probabilities up to rounding.
fn same(one: &[(String, f64)], other: &[(String, f64)]) -> bool {
    let sorted = |list: &[(String, f64)]| {
        let mut list = list.to_vec();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    };
    one.len() == other.len()
        && sorted(one)
            .iter()
            .zip(&sorted(other))
            .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-3)
}

fn cause(error: PolicyError) -> EmbedError {
    let PolicyError::Failed { policy: "hf", cause } = error else { unreachable!("{error:?}") };
    *cause.downcast().unwrap()
}

#[test]
fn candidates_are_those_of_the_package() {
    for (decoding, mode) in [(Decoding::Sample, "sample"), (Decoding::Beam, "beam")] {
        let policy = policy(sampling().with_decoding(decoding).with_seed(3));
        let found = propose(&policy, &STATES).unwrap();
        let expected: Vec<Vec<(String, f64)>> = Python::attach(|py| {
            let class = py.import("builtins")?.getattr("plain_policy")?;
            let plain = class.call_method1("load", (model().to_str().unwrap(),))?;
            let locals = pyo3::types::PyDict::new(py);
            locals.set_item("policy", plain)?;
            locals.set_item("states", STATES.to_vec())?;
            locals.set_item("mode", mode)?;
            let code = c"[p.tactics for p in policy.propose(states, n=4, max_new_tokens=16, seed=3,
                mode=mode, stop=['e', 'n', '\\n', '∀'])]";
            py.eval(code, None, Some(&locals))?.extract()
        })
        .unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            let found = plain(found);
            assert!(!found.is_empty() && same(&found, expected), "{found:?}, {expected:?}");
            assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        }
    }
}

#[test]
fn many_threads_share_calls_and_get_each_its_own() {
    let policy = policy(sampling().with_max_wait(Duration::from_millis(20)));
    let texts: Vec<String> =
        (0..24).map(|i| format!("MANY : ℕ\n⊢ MANY + {i} = {i} + MANY")).collect();
    let alone: Vec<_> =
        texts.iter().map(|text| plain(&propose(&policy, &[text]).unwrap()[0])).collect();
    let calls = || Python::attach(|py| py.import("builtins")?.getattr("asked")?.len()).unwrap();
    let before = calls();
    thread::scope(|scope| {
        for thread in 0..12 {
            let (policy, texts, alone) = (&policy, &texts, &alone);
            scope.spawn(move || {
                for round in 0..4 {
                    let place = (thread * 2 + round * 5) % texts.len();
                    let found = propose(policy, &[&texts[place]]).unwrap();
                    assert!(same(&plain(&found[0]), &alone[place]), "{}", texts[place]);
                }
            });
        }
    });
    assert!(!policy.time().so_far().is_zero());
    let made = calls() - before;
    assert!(made < 48, "{made} calls for 48 requests");
}

#[test]
fn a_poisoned_state_fails_only_its_own_candidates() {
    let policy = policy(sampling());
    let found = propose(&policy, &["⊢ True", "RAISE", "⊢ False"]).unwrap();
    assert!(found[0].is_ok() && found[2].is_ok());
    assert!(found[1].as_ref().unwrap_err().0.contains("ValueError: a state is poisoned"));
    for states in [&["RAISE"][..], &["RAISE", "RAISE too"]] {
        let EmbedError::Python(exception) = cause(propose(&policy, states).unwrap_err()) else {
            unreachable!()
        };
        assert_eq!(exception.kind, "ValueError");
        assert!(exception.traceback.unwrap().contains("in propose"));
    }
    assert!(propose(&policy, &STATES).is_ok());
}

#[test]
fn a_state_without_candidates_says_why() {
    let policy = policy(sampling());
    let long = "n : ℕ ".repeat(2000);
    let found = propose(&policy, &["⊢ True", &long]).unwrap();
    assert!(found[0].is_ok());
    let reason = &found[1].as_ref().unwrap_err().0;
    assert!(reason.contains("tokens"), "{reason}");
    assert!(propose(&policy, &[]).unwrap().is_empty());
}

#[test]
fn waiting_ends_when_the_search_is_stopped_and_so_does_the_work() {
    let endless = sampling().with_stop(["no such text"]).with_max_new_tokens(1900);
    let policy = policy(endless);
    let cancel = Cancel::default();
    let control = Control::new(cancel.clone());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let stopped = policy.propose(&[Query::new("t", "⊢ True")], &control).unwrap_err();
            (stopped, Instant::now())
        });
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        cancel.cancel();
        let (stopped, end) = waiting.join().unwrap();
        assert!(matches!(stopped, PolicyError::Stopped(Stop::Cancelled)), "{stopped:?}");
        assert!(end.duration_since(start) < Duration::from_secs(1));
    });
    let deadline = Some(Instant::now() + Duration::from_millis(200));
    let control = Control::default().with_deadline(deadline);
    let stopped = policy.propose(&[Query::new("t", "⊢ True")], &control).unwrap_err();
    assert!(matches!(stopped, PolicyError::Stopped(Stop::Time)), "{stopped:?}");
    // The whole call would take far longer.
    let start = Instant::now();
    drop(policy);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn an_attached_thread_may_wait_and_python_goes_on() {
    weather();
    Python::attach(|py| {
        let policy = policy(sampling());
        let found = propose(&policy, &["⊢ True", "SLOW"]).unwrap();
        assert!(found.iter().all(Result::is_ok));
        assert!(py.run(c"assert True", None, None).is_ok());
        drop(policy);
    });
}

#[test]
fn a_model_that_is_none_is_an_error_with_a_traceback() {
    let options = ebm_embed::PythonEncoderOptions::new("/no/such/model");
    let error = PythonPolicy::load(python(), &options, sampling()).unwrap_err();
    let EmbedError::Python(exception) = error else { unreachable!("{error}") };
    assert_eq!(exception.kind, "ModelError");
    assert!(exception.message.contains("/no/such/model"), "{exception}");
    assert!(exception.traceback.unwrap().contains("Traceback"));
}

#[test]
fn an_encoder_without_its_head_is_refused() {
    let error = PythonPolicy::beside(&support::encoder(), sampling()).unwrap_err();
    assert!(error.to_string().contains("keep_head"), "{error}");
}

#[test]
fn options_without_meaning_are_refused() {
    let policy = policy(sampling().with_samples(0));
    let error = cause(propose(&policy, &["⊢ True"]).unwrap_err());
    assert!(error.to_string().starts_with("ArgumentError: `n` 0"), "{error}");
}

#[test]
fn an_encoder_and_a_policy_run_at_once_and_neither_waits_for_the_other() {
    weather();
    let encoder = PythonEncoder::load(python(), &options().with_keep_head(true)).unwrap();
    let policy = PythonPolicy::beside(&encoder, sampling()).unwrap();
    let dim = encoder.dim();
    let mut rows = vec![0.0; STATES.len() * dim];
    encoder.encode_into(&STATES, &mut rows).unwrap();
    let tactics: Vec<_> = propose(&policy, &STATES).unwrap().iter().map(plain).collect();
    let encoder = Coalescer::start(encoder, CoalescerOptions::default()).unwrap();
    let over = AtomicBool::new(false);
    let (embedded, proposed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wanted = 20;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    let states = STATES.map(std::sync::Arc::from);
                    let found = encoder.submit(states).unwrap().wait().unwrap();
                    for (row, expected) in found.into_iter().zip(rows.chunks(dim)) {
                        assert!(difference(&row.unwrap(), expected) <= 1e-5);
                    }
                    embedded.fetch_add(1, Ordering::AcqRel);
                }
            });
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    let found = propose(&policy, &STATES).unwrap();
                    for (found, expected) in found.iter().zip(&tactics) {
                        assert!(same(&plain(found), expected));
                    }
                    proposed.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(120);
        while Instant::now() < end
            && embedded.load(Ordering::Acquire).min(proposed.load(Ordering::Acquire)) < wanted
        {
            thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Release);
    });
    let (embedded, proposed) = (embedded.into_inner(), proposed.into_inner());
    assert!(embedded.min(proposed) >= wanted, "{embedded} requests and {proposed} proposals");
}
