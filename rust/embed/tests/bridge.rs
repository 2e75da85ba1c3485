//! The real bridge with a small model, in good and in bad weather.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ebm_embed::{EmbedError, Interpreter, PythonEncoder, PythonEncoderOptions};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Coalescer, CoalescerOptions, Encoder, EncoderError,
    NoEmbedding, Report,
};
use support::{difference, encoder, model, options, python};

fn rows(encoder: &impl Encoder, states: &[&str]) -> (Vec<Report>, Vec<f32>) {
    let mut rows = vec![0.0; states.len() * encoder.dim()];
    let reports = encoder.encode_into(states, &mut rows).unwrap();
    (reports, rows)
}

#[test]
fn rows_equal_those_of_each_state_alone() {
    let encoder = encoder();
    let states = ["n : ℕ\n⊢ n + 0 = n", "⊢ True", "n : ℕ\n⊢ n = n", "⊢ True ∧ True", "p : Prop"];
    let (reports, together) = rows(&encoder, &states);
    for ((state, report), row) in states.iter().zip(reports).zip(together.chunks(encoder.dim())) {
        assert!(
            matches!(report, Ok(prompt) if prompt.tokens > 0 && !prompt.truncated),
            "{report:?}"
        );
        let (_, alone) = rows(&encoder, &[state]);
        assert!(difference(row, &alone) <= 1e-5);
    }
}

#[test]
fn nothing_in_nothing_out() {
    assert_eq!(encoder().encode_into(&[], &mut []).unwrap(), []);
}

#[test]
fn a_buffer_of_another_size_is_refused() {
    let error = encoder().encode_into(&["⊢ True"], &mut [0.0; 3]).unwrap_err();
    assert!(matches!(error, EncoderError::Argument(_)), "{error}");
}

#[test]
fn an_exception_comes_with_type_message_and_traceback_and_the_next_call_works() {
    let encoder = encoder();
    let mut memory = vec![0.0; 2 * encoder.dim()];
    let error = encoder.encode_into(&["⊢ True", "RAISE"], &mut memory).unwrap_err();
    let EncoderError::Failed { kind, message, trace } = error else { unreachable!("{error}") };
    assert_eq!((kind.as_str(), message.as_str()), ("ValueError", "a state is poisoned"));
    assert!(trace.unwrap().contains("in encode_into"));
    assert!(rows(&encoder, &["⊢ True", "⊢ False"]).0.iter().all(Report::is_ok));
}

#[test]
fn an_array_that_python_keeps_is_not_the_callers_memory() {
    let encoder = encoder();
    let (_, first) = rows(&encoder, &["⊢ KEEP", "⊢ True"]);
    let expected = first.clone();
    let (_, second) = rows(&encoder, &["⊢ True"]); // in which Python writes into what it kept
    assert_eq!(first, expected);
    assert!(difference(&second, &expected[encoder.dim()..]) <= 1e-5);
}

#[test]
fn out_of_memory_of_torch_is_an_error_and_the_next_call_works() {
    let encoder = encoder();
    let mut memory = vec![0.0; encoder.dim()];
    let error = encoder.encode_into(&["TORCH"], &mut memory).unwrap_err();
    assert!(matches!(error, EncoderError::Failed { ref kind, .. } if kind == "OutOfMemoryError"));
    assert!(rows(&encoder, &["⊢ True"]).0[0].is_ok());
}

#[test]
fn a_poisoned_text_fails_only_its_own_row() {
    let coalescer = Coalescer::start(encoder(), CoalescerOptions::default()).unwrap();
    let states = ["a", "b", "RAISE", "c"].map(Arc::from);
    let answers = coalescer.submit(states).unwrap().wait().unwrap();
    let right: Vec<bool> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(right, [true, true, false, true]);
    let Err(NoEmbedding::Encoder(EncoderError::Failed { kind, trace, .. })) = &answers[2] else {
        unreachable!("{:?}", answers[2])
    };
    assert_eq!(kind, "ValueError");
    assert!(trace.is_some());
}

#[test]
fn weights_that_are_not_finite_give_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("nan");
    let script = "
import sys, shutil
from safetensors.torch import load_file, save_file
shutil.copytree(sys.argv[1], sys.argv[2])
file = sys.argv[2] + '/model.safetensors'
weights = load_file(file)
weights['model.norm.weight'][3] = float('nan')
save_file(weights, file, metadata={'format': 'pt'})
";
    let interpreter = python().environment().executable();
    let mut command = Command::new(interpreter);
    assert!(command.args(["-c", script]).arg(model()).arg(&copy).status().unwrap().success());
    let options = PythonEncoderOptions::new(copy.to_str().unwrap());
    let encoder = PythonEncoder::load(python(), &options).unwrap();
    let mut rows = vec![0.0; 2 * encoder.dim()];
    let error = encoder.encode_into(&["⊢ True", "⊢ False"], &mut rows).unwrap_err();
    let EncoderError::Failed { kind, message, .. } = &error else { unreachable!("{error:?}") };
    assert_eq!(kind, "ModelError");
    assert!(message.contains("no finite embedding") && message.contains("NaN"), "{message}");
}

#[test]
fn a_text_that_is_too_long_is_reported_or_cut() {
    let long = "n : ℕ ".repeat(50);
    let states = ["⊢ True", &long];
    let skips = options().with_max_length(12).with_overlong("skip");
    let (reports, _) = rows(&PythonEncoder::load(python(), &skips).unwrap(), &states);
    assert!(reports[0].is_ok());
    assert!(matches!(reports[1], Err(NoEmbedding::TooLong { tokens: 50.. })), "{:?}", reports[1]);
    let cuts = skips.with_overlong("truncate");
    let (reports, _) = rows(&PythonEncoder::load(python(), &cuts).unwrap(), &states);
    assert!(matches!(&reports[1], Ok(prompt) if prompt.truncated), "{:?}", reports[1]);
}

#[test]
fn a_model_that_is_none_is_an_error_with_a_traceback() {
    let options = PythonEncoderOptions::new("/no/such/model");
    let error = PythonEncoder::load(python(), &options).unwrap_err();
    let EmbedError::Python(exception) = error else { unreachable!("{error}") };
    assert_eq!(exception.kind, "ModelError");
    assert!(exception.message.contains("/no/such/model"), "{exception}");
    assert!(exception.traceback.unwrap().contains("Traceback"));
}

#[test]
fn options_reach_the_encoder() {
    let other = options()
        .with_template("deepseek-prover-v2")
        .with_dtype("bfloat16")
        .with_pooling("last")
        .with_layer(-2)
        .with_engine("padded");
    let other = PythonEncoder::load(python(), &other).unwrap();
    let fields = ebm_cache::differences(Some(encoder().identity()), Some(other.identity()));
    let fields: Vec<String> = fields.into_iter().map(|difference| difference.field).collect();
    assert_eq!(fields, ["dtype", "layer", "pooling", "template"]);
    assert_eq!(other.describe().unwrap()["engine"]["name"], "padded");
}

/// A pool of short states, and the reference embedding of each.
fn pool(encoder: &PythonEncoder) -> Vec<(String, Vec<f32>)> {
    let states = (0..300).map(|i| format!("n : ℕ\nh : {} < n\n⊢ n ≠ {}", i % 17, i));
    states.map(|state| (state.clone(), rows(encoder, &[&state]).1)).collect()
}

#[test]
fn many_threads_get_each_its_own_rows() {
    let encoder = encoder();
    let pool = pool(&encoder);
    // Room for about a third of the pool, so that embeddings come and go.
    let options = CachedEncoderOptions::default().with_memory_bytes(50_000);
    let cached = CachedEncoder::new(encoder, None, options).unwrap();
    let checked = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..64_usize {
            let (pool, cached, checked) = (&pool, &cached, &checked);
            scope.spawn(move || {
                for request in 0..1000_usize {
                    let mixed = thread.wrapping_mul(7919).wrapping_add(request * 31);
                    let wanted: Vec<_> =
                        (0..mixed % 5).map(|k| &pool[(mixed + k * k * 13) % pool.len()]).collect();
                    let states: Vec<&str> = wanted.iter().map(|(state, _)| &**state).collect();
                    for (answer, (state, alone)) in
                        cached.encode(&states).unwrap().into_iter().zip(&wanted)
                    {
                        assert!(difference(&answer.unwrap(), alone) <= 1e-5, "{state}");
                        checked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let statistics = cached.statistics();
    assert_eq!(statistics.requests, 64_000);
    assert_eq!(statistics.states, checked.into_inner() as u64);
    assert!(statistics.encoder.encoded > 300, "rows were encoded again: {statistics:?}");
}

#[test]
fn callers_that_give_up_disturb_nobody() {
    let coalescer = Coalescer::start(encoder(), CoalescerOptions::default()).unwrap();
    let many = || (0..200).map(|i| Arc::from(format!("n : ℕ\n⊢ n ≠ {i}")));
    for _ in 0..20 {
        let given_up = coalescer.submit(many()).unwrap().wait_for(Duration::from_micros(1));
        assert!(matches!(given_up, Err(EncoderError::TimedOut(_))));
        drop(coalescer.submit(many()).unwrap());
    }
    let answers = coalescer.submit(many()).unwrap().wait().unwrap();
    assert!(answers.iter().all(Result::is_ok));
}

#[test]
fn tasks_await_rows_while_the_runtime_goes_on() {
    let encoder = CachedEncoder::new(encoder(), None, CachedEncoderOptions::default()).unwrap();
    let texts: Vec<String> = (0..400).map(|i| format!("n : ℕ\n⊢ n * {i} = {i} * n")).collect();
    let states: Vec<&str> = texts.iter().map(String::as_str).collect();
    // One thread: were it blocked, the other task could not count.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let ticks = runtime.block_on(async {
        let mut ticks = 0;
        let rows = encoder.encode_async(&states);
        tokio::pin!(rows);
        loop {
            tokio::select! {
                answers = &mut rows => {
                    assert!(answers.unwrap().iter().all(Result::is_ok));
                    return ticks;
                }
                () = tokio::time::sleep(Duration::from_millis(1)) => ticks += 1,
            }
        }
    });
    assert!(ticks > 0);
}

#[test]
fn ctrl_c_stays_the_hosts() {
    let handler = || {
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        #[expect(unsafe_code, reason = "only asks")]
        // SAFETY: with no new action the call only writes the present one.
        unsafe {
            assert_eq!(libc::sigaction(libc::SIGINT, std::ptr::null(), action.as_mut_ptr()), 0);
            action.assume_init().sa_sigaction
        }
    };
    drop(encoder());
    // A process begins with one of these; anything else is a handler of Python's.
    assert!([libc::SIG_DFL, libc::SIG_IGN].contains(&handler()), "Python took Ctrl-C over");
}

#[test]
fn a_second_start_gives_the_same_interpreter_or_says_no() {
    let first = python();
    assert!(std::ptr::eq(first, Interpreter::start(None).unwrap()));
    let error = Interpreter::start(Some(Path::new("/no/such/environment"))).unwrap_err();
    assert!(matches!(error, EmbedError::NotUsable { .. }), "{error}");
}
