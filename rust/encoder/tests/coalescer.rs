//! Many callers of one encoder: each gets its own embeddings, whatever the others do.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use ebm_cache::Identity;
use ebm_encoder::{
    Answer, Coalescer, CoalescerOptions, Encoder, EncoderError, EncoderResult, NoEmbedding,
    PromptInfo, Report, TestEncoder,
};
use flume::{Receiver, Sender};
use support::{DIM, block_on, fake, held, identity};

fn texts(states: &[&str]) -> Vec<Arc<str>> {
    states.iter().map(|state| Arc::from(*state)).collect()
}

fn assert_right(states: &[&str], answers: &[Answer]) {
    assert_eq!(states.len(), answers.len());
    for (state, answer) in states.iter().zip(answers) {
        assert_eq!(**answer.as_ref().unwrap(), *fake().row(state), "{state}");
    }
}

/// An hour: a test that waits for it does not end.
fn patient() -> CoalescerOptions {
    CoalescerOptions::default().with_max_wait(Duration::from_secs(3600))
}

#[test]
fn a_lone_caller_does_not_wait_for_others() {
    let coalescer = Coalescer::start(fake(), patient()).unwrap();
    for _ in 0..3 {
        let states = ["⊢ a", "⊢ b", "⊢ a"];
        assert_right(&states, &coalescer.submit(texts(&states)).unwrap().wait().unwrap());
    }
    let statistics = coalescer.statistics();
    assert_eq!((statistics.requests, statistics.states, statistics.calls), (3, 9, 3));
    assert_eq!((statistics.encoded, statistics.shared_batches), (6, 0));
    assert_eq!((coalescer.dim(), coalescer.identity()), (DIM, &identity()));
}

#[test]
fn no_state_has_an_answer_at_once() {
    let coalescer = Coalescer::start(fake(), patient()).unwrap();
    assert!(coalescer.submit([]).unwrap().wait().unwrap().is_empty());
    assert_eq!(coalescer.statistics().calls, 0);
}

#[test]
fn limits_of_nothing_are_refused() {
    for options in [
        CoalescerOptions::default().with_max_states(0),
        CoalescerOptions::default().with_max_bytes(0),
        CoalescerOptions::default().with_queue(0),
    ] {
        assert!(matches!(Coalescer::start(fake(), options), Err(EncoderError::Argument(_))));
    }
    assert!(TestEncoder::new(0, identity()).is_err());
    assert!(fake().encode_into(&["a"], &mut [0.0; DIM + 1]).is_err());
}

#[test]
fn a_poisoned_state_fails_only_its_own_row() {
    let coalescer = Coalescer::start(fake(), CoalescerOptions::default()).unwrap();
    let states = ["⊢ a", "poison", "⊢ b", "a bad one", "a long one", "⊢ c"];
    let answers = coalescer.submit(texts(&states)).unwrap().wait().unwrap();
    let rows: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(rows, [true, false, true, false, false, true]);
    assert!(
        answers[1].as_ref().unwrap_err().to_string().contains("PoisonError: a state is poisoned")
    );
    assert!(matches!(answers[3], Err(NoEmbedding::Bad { .. })));
    assert_eq!(answers[4], Err(NoEmbedding::TooLong { tokens: 5000 }));
    assert_right(&["⊢ c"], &answers[5..]);
    assert_right(&["⊢ d"], &coalescer.submit(texts(&["⊢ d"])).unwrap().wait().unwrap());
}

#[test]
fn an_encoder_that_panics_is_survived() {
    let panicking = fake().before_each_call(|states| {
        assert!(!states.contains(&"panic"), "as asked");
    });
    let coalescer = Coalescer::start(panicking, CoalescerOptions::default()).unwrap();
    let answers = coalescer.submit(texts(&["⊢ a", "panic"])).unwrap().wait().unwrap();
    assert_right(&["⊢ a"], &answers[..1]);
    assert!(answers[1].as_ref().unwrap_err().to_string().contains("panicked"));
}

#[test]
fn many_threads_get_each_its_own_rows() {
    let coalescer =
        Coalescer::start(fake(), CoalescerOptions::default().with_max_states(7).with_queue(4))
            .unwrap();
    thread::scope(|scope| {
        for caller in 0..32 {
            let coalescer = &coalescer;
            scope.spawn(move || {
                for request in 0..50 {
                    let states: Vec<String> = (0..=request % 12)
                        .map(|i| format!("{} {i}", (caller + request) % 9))
                        .collect();
                    let states: Vec<&str> = states.iter().map(String::as_str).collect();
                    let answers = coalescer.submit(texts(&states)).unwrap().wait().unwrap();
                    assert_right(&states, &answers);
                }
            });
        }
    });
    let statistics = coalescer.statistics();
    assert_eq!(statistics.requests, 32 * 50);
    assert!(statistics.encoded < statistics.states, "equal states are encoded once");
    assert!(statistics.shared_batches > 0);
}

#[test]
fn rows_are_handed_out_by_reference() {
    let coalescer = Coalescer::start(fake(), CoalescerOptions::default()).unwrap();
    let answers = coalescer.submit(texts(&["a", "b", "a"])).unwrap().wait().unwrap();
    let address = |i: usize| answers[i].as_ref().ok().unwrap().as_ptr();
    assert_eq!(address(0), address(2));
    assert_eq!(address(0).wrapping_add(DIM), address(1), "one memory for the batch");
    let kept = answers[1].clone().unwrap();
    let before = kept.as_ptr();
    drop((answers, coalescer));
    assert_eq!(before, kept.as_ptr());
    assert_eq!(*kept, *fake().row("b"), "a row outlives all else");
}

fn held_behind(options: CoalescerOptions) -> (Coalescer, Receiver<usize>, Sender<()>) {
    let (encoder, begun, go_on) = held();
    (Coalescer::start(encoder, options).unwrap(), begun, go_on)
}

#[test]
fn what_comes_while_the_encoder_is_busy_is_one_batch() {
    let (coalescer, begun, go_on) = held_behind(CoalescerOptions::default());
    let first = coalescer.submit(texts(&["first"])).unwrap();
    assert_eq!(begun.recv(), Ok(1));
    let rest: Vec<_> =
        (0..10).map(|i| coalescer.submit([Arc::from(format!("{i}"))]).unwrap()).collect();
    go_on.send(()).unwrap();
    assert_eq!(begun.recv(), Ok(10), "all that came meanwhile");
    go_on.send(()).unwrap();
    assert_right(&["first"], &first.wait().unwrap());
    for (i, pending) in rest.into_iter().enumerate() {
        assert_right(&[&i.to_string()], &pending.wait().unwrap());
    }
}

#[test]
fn a_caller_that_gives_up_is_not_encoded_for() {
    let (coalescer, begun, go_on) = held_behind(CoalescerOptions::default());
    let first = coalescer.submit(texts(&["first"])).unwrap();
    begun.recv().unwrap();
    let late = coalescer.submit(texts(&["late"])).unwrap();
    let dropped = coalescer.submit(texts(&["dropped"])).unwrap();
    let kept = coalescer.submit(texts(&["kept"])).unwrap();
    let time = Duration::from_millis(1);
    assert_eq!(late.wait_for(time).unwrap_err(), EncoderError::TimedOut(time));
    drop(dropped);
    go_on.send(()).unwrap();
    assert_eq!(begun.recv(), Ok(1), "only what someone still waits for");
    go_on.send(()).unwrap();
    assert_right(&["kept"], &kept.wait().unwrap());
    assert_right(&["first"], &first.wait().unwrap());
}

#[test]
fn a_full_queue_is_told_or_waited_for() {
    let (coalescer, begun, go_on) = held_behind(CoalescerOptions::default().with_queue(2));
    let mut pending = vec![coalescer.submit(texts(&["0"])).unwrap()];
    begun.recv().unwrap();
    pending.push(coalescer.submit(texts(&["1"])).unwrap());
    pending.push(coalescer.submit(texts(&["2"])).unwrap());
    for _ in 0..5 {
        assert_eq!(coalescer.try_submit(texts(&["3"])).unwrap_err(), EncoderError::Busy(2));
    }
    let statistics = coalescer.statistics();
    assert_eq!((statistics.requests, statistics.states), (3, 3), "refused ones do not count");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| coalescer.submit(texts(&["3"])).unwrap().wait().unwrap());
        for _ in 0..4 {
            go_on.send(()).unwrap();
        }
        assert_right(&["3"], &waiting.join().unwrap());
    });
    for (i, pending) in pending.into_iter().enumerate() {
        assert_right(&[&i.to_string()], &pending.wait().unwrap());
    }
}

#[test]
fn what_was_asked_is_answered_before_the_end() {
    let (coalescer, begun, go_on) = held_behind(CoalescerOptions::default());
    let first = coalescer.submit(texts(&["first"])).unwrap();
    begun.recv().unwrap();
    let last = coalescer.submit(texts(&["last"])).unwrap();
    let ending = thread::spawn(move || drop(coalescer));
    go_on.send(()).unwrap();
    go_on.send(()).unwrap();
    assert_right(&["first"], &first.wait().unwrap());
    assert_right(&["last"], &last.wait().unwrap());
    ending.join().unwrap();
}

#[test]
fn tasks_await_their_rows() {
    let coalescer = Coalescer::start(fake(), CoalescerOptions::default()).unwrap();
    let states = ["⊢ a", "⊢ b"];
    assert_right(&states, &block_on(coalescer.encode(texts(&states))).unwrap());
    let pending = coalescer.submit(texts(&states)).unwrap();
    assert_right(&states, &block_on(pending.answer()).unwrap());
}

/// Says that all is well, and writes only every second embedding.
struct Forgetful;

impl Encoder for Forgetful {
    fn dim(&self) -> usize {
        DIM
    }

    fn identity(&self) -> &Identity {
        static IDENTITY: LazyLock<Identity> = LazyLock::new(identity);
        &IDENTITY
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        for (state, row) in states.iter().zip(rows.chunks_mut(DIM)).step_by(2) {
            row.copy_from_slice(&fake().row(state));
        }
        Ok(vec![Ok(PromptInfo::new(1)); states.len()])
    }
}

#[test]
fn a_row_that_was_not_written_is_not_handed_out() {
    let coalescer = Coalescer::start(Forgetful, CoalescerOptions::default()).unwrap();
    for _ in 0..3 {
        // Also where the memory is that of an earlier batch, full of its embeddings.
        let answers = coalescer.submit(texts(&["a", "b", "c", "d"])).unwrap().wait().unwrap();
        let written: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        assert_eq!(written, [true, false, true, false]);
        assert!(answers[1].as_ref().unwrap_err().to_string().contains("did not write this row"));
    }
}

#[test]
fn waits_without_end_are_no_failure() {
    let options = CoalescerOptions::default().with_max_wait(Duration::MAX);
    let coalescer = Coalescer::start(fake(), options).unwrap();
    for _ in 0..2 {
        let pending = coalescer.submit(texts(&["a"])).unwrap();
        assert_right(&["a"], &pending.wait_for(Duration::MAX).unwrap());
    }
}

#[test]
fn encoders_behind_pointers_are_encoders() {
    let boxed: Box<dyn Encoder> = Box::new(fake());
    let shared: Arc<dyn Encoder> = Arc::new(fake());
    for encoder in [Coalescer::start(boxed, patient()), Coalescer::start(shared, patient())] {
        let encoder = encoder.unwrap();
        assert_right(&["⊢ a"], &encoder.submit(texts(&["⊢ a"])).unwrap().wait().unwrap());
    }
    let (encoder, mut rows) = (fake(), [0.0; DIM]);
    assert!((&&encoder).encode_into(&["⊢ a"], &mut rows).unwrap()[0].is_ok());
    assert_eq!(rows[..], *encoder.row("⊢ a"));
}
