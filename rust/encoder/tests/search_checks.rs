//! Embeddings of a search pass the row checks before a caller, the memory or a file gets them.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebm_cache::{Cache, EmbeddingCache, Identity, OutputLock, WriterOptions};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Coalescer, CoalescerOptions, Encoder, EncoderError,
    EncoderResult, NoEmbedding, PromptInfo, Report, TokenDigest,
};
use serde_json::json;
use support::{DIM, fake, identity};

/// Writes the embeddings of the states of a call, given also how often it was called before.
type Write = dyn Fn(usize, &[&str], &mut [f32]) + Send + Sync;

/// An encoder that reports every embedding as good, whatever is written, and that may know its
/// tokens.
struct Careless {
    write: Box<Write>,
    digest: fn(&str) -> Option<TokenDigest>,
    truncated: bool,
    calls: Arc<AtomicUsize>,
    identity: Identity,
}

impl Careless {
    fn new(write: impl Fn(usize, &[&str], &mut [f32]) + Send + Sync + 'static) -> Self {
        let calls = Arc::default();
        let write = Box::new(write);
        Self { write, digest: |_| None, truncated: false, calls, identity: identity() }
    }
}

impl Encoder for Careless {
    fn dim(&self) -> usize {
        DIM
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        (self.write)(self.calls.fetch_add(1, Ordering::Relaxed), states, rows);
        let prompt = PromptInfo::new(9000).with_truncated(self.truncated);
        let report = |state: &&str| Ok(prompt.with_digest((self.digest)(state)));
        Ok(states.iter().map(report).collect())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as an encoder's digest is")]
fn digest_of_text(state: &str) -> Option<TokenDigest> {
    Some(TokenDigest::of(&state.bytes().map(u32::from).collect::<Vec<_>>()))
}

fn write_right(states: &[&str], rows: &mut [f32]) {
    for (state, row) in states.iter().zip(rows.chunks_mut(DIM)) {
        row.copy_from_slice(&fake().row(state));
    }
}

fn cached(encoder: Careless, options: CachedEncoderOptions) -> CachedEncoder {
    CachedEncoder::new(encoder, None, options).unwrap()
}

fn appending(path: &Path) -> CachedEncoderOptions {
    CachedEncoderOptions::default().with_append_to(path)
}

fn reason(answer: &Result<impl Sized, NoEmbedding>) -> String {
    let Err(NoEmbedding::Bad { reason }) = answer else { unreachable!("a bad row is handed out") };
    reason.clone()
}

#[test]
fn a_bad_row_is_answered_as_bad_each_time_and_lands_nowhere() {
    type Spoil = fn(&mut [f32]);
    let spoils: [(&str, Spoil); 4] = [
        ("is zero", |row| row.fill(0.0)),
        ("value NaN in column 3", |row| row[3] = f32::NAN),
        ("value inf in column 0", |row| row[0] = f32::INFINITY),
        ("did not write", |row| row.fill(f32::NAN)),
    ];
    for (expected, spoil) in spoils {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("search.parquet");
        let encoder = Careless::new(move |_, states, rows| {
            write_right(states, rows);
            let at = states.iter().position(|state| *state == "spoilt");
            if let Some(at) = at {
                spoil(&mut rows[at * DIM..(at + 1) * DIM]);
            }
        });
        let encoder = cached(encoder, appending(&path));
        for _ in 0..2 {
            let answers = encoder.encode(&["a", "spoilt", "b"]).unwrap();
            assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2);
            assert!(reason(&answers[1]).contains(expected), "{:?}", answers[1]);
            assert!(encoder.get("spoilt").is_none());
        }
        assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, 2);
        assert!(EmbeddingCache::open(&path).unwrap().get("spoilt").is_none());
    }
}

#[test]
fn one_row_for_all_states_is_refused_within_a_call_and_over_calls() {
    for texts in [vec![vec!["a", "b", "c"]], vec![vec!["a"], vec!["b"], vec!["c"]]] {
        let encoder = Careless::new(|_, _, rows| {
            rows.chunks_mut(DIM).for_each(|row| row.copy_from_slice(&fake().row("one")));
        });
        let encoder = cached(encoder, CachedEncoderOptions::default());
        let mut good = 0;
        for states in &texts {
            for answer in encoder.encode(states).unwrap() {
                good += usize::from(answer.is_ok());
            }
        }
        assert_eq!(good, 1, "{texts:?}");
        assert_eq!(encoder.statistics().encoder.bad, 2);
        let again = encoder.encode(&["c", "b"]).unwrap();
        assert!(reason(&again[0]).contains("of another state with other tokens"));
        assert!(again[1].is_err());
    }
}

#[test]
fn a_coalescer_checks_its_rows_as_well() {
    let encoder = Careless::new(|_, _, rows| rows.fill(0.0));
    let coalescer = Coalescer::start(encoder, CoalescerOptions::default()).unwrap();
    let answer = coalescer.submit([Arc::from("a")]).unwrap().wait().unwrap().remove(0);
    assert!(matches!(answer, Err(NoEmbedding::Bad { .. })));
    assert_eq!(coalescer.statistics().bad, 1);
}

#[test]
fn of_two_equal_rows_the_wrong_one_is_found_also_if_it_came_first() {
    // The first call gives "a" the embedding of "b"; all others are right.
    for batches in [vec![vec!["a"], vec!["b"]], vec![vec!["a", "b"]]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("search.parquet");
        let mut encoder = Careless::new(|call, states, rows| {
            write_right(states, rows);
            if call == 0 {
                rows[..DIM].copy_from_slice(&fake().row("b"));
            }
        });
        encoder.digest = digest_of_text;
        let encoder = cached(encoder, appending(&path));
        for states in &batches {
            encoder.encode(states).unwrap();
        }
        for state in ["a", "b"] {
            let answers = encoder.encode(&[state]).unwrap();
            assert_eq!(**answers[0].as_ref().unwrap(), *fake().row(state), "{batches:?}: {state}");
        }
        assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, 2);
        let stored = EmbeddingCache::open(&path).unwrap();
        for state in ["a", "b"] {
            assert_eq!(stored.get(state).unwrap(), fake().row(state), "{batches:?}: {state}");
        }
    }
}

#[test]
fn rows_of_the_cache_in_front_and_of_the_output_take_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stored.parquet");
    store(&path, "stored");
    let copies = || {
        let mut encoder = Careless::new(|_, states, rows| {
            write_right(states, rows);
            let copied = states.iter().position(|state| *state == "copy");
            if let Some(at) = copied {
                rows[at * DIM..(at + 1) * DIM].copy_from_slice(&fake().row("stored"));
            }
        });
        encoder.digest = digest_of_text;
        encoder
    };
    let front = Some(Cache::from(EmbeddingCache::open(&path).unwrap()));
    let in_front = CachedEncoder::new(copies(), front, CachedEncoderOptions::default()).unwrap();
    let appended = cached(copies(), appending(&path));
    for encoder in [in_front, appended] {
        let answers = encoder.encode(&["copy", "fine"]).unwrap();
        assert!(reason(&answers[0]).contains("of another state"));
        assert!(answers[1].is_ok());
        let known = encoder.encode(&["stored"]).unwrap();
        assert_eq!(**known[0].as_ref().unwrap(), *fake().row("stored"));
    }
}

/// Writes an output with the embedding of one state.
fn store(path: &Path, state: &str) {
    let lock = OutputLock::acquire(path).unwrap();
    let mut writer = lock.open(identity(), DIM, WriterOptions::default()).unwrap();
    writer.append(&[state], &fake().row(state)).unwrap();
    writer.finish(json!({})).unwrap();
}

#[test]
fn a_stored_row_stays_where_its_state_cannot_be_encoded_again() {
    // "copy" gets the stored embedding, and "stored" itself another one, as long as there are two
    // states.
    for states in [["copy", "fine"], ["stored", "fine"]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("search.parquet");
        store(&path, "stored");
        let mut encoder = Careless::new(|_, states, rows| {
            write_right(states, rows);
            match states[0] {
                "copy" => rows[..DIM].copy_from_slice(&fake().row("stored")),
                "stored" if states.len() > 1 => rows[..DIM].copy_from_slice(&fake().row("other")),
                "stored" => panic!("out of memory"),
                _ => {}
            }
        });
        encoder.digest = digest_of_text;
        let encoder = cached(encoder, appending(&path));
        let answers = encoder.encode(&states).unwrap();
        reason(&answers[0]);
        assert!(answers[1].is_ok());
        drop(answers);
        assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, 2, "{states:?}");
        let stored = EmbeddingCache::open(&path).unwrap();
        assert_eq!(stored.get("stored").unwrap(), fake().row("stored"), "{states:?}");
    }
}

#[test]
fn a_stored_row_that_its_state_does_not_have_when_encoded_again_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("search.parquet");
    let lock = OutputLock::acquire(&path).unwrap();
    let mut writer = lock.open(identity(), DIM, WriterOptions::default()).unwrap();
    writer.append(&["a"], &fake().row("b")).unwrap();
    writer.finish(json!({})).unwrap();
    let mut encoder = Careless::new(|_, states, rows| write_right(states, rows));
    encoder.digest = digest_of_text;
    let encoder = cached(encoder, appending(&path));
    assert!(encoder.encode(&["b"]).unwrap()[0].is_ok());
    assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, 2);
    let stored = EmbeddingCache::open(&path).unwrap();
    for state in ["a", "b"] {
        assert_eq!(stored.get(state).unwrap(), fake().row(state));
    }
}

/// Every prompt is cut to the same tokens.
fn cutting() -> Careless {
    let write = |_: usize, _: &[&str], rows: &mut [f32]| {
        rows.chunks_mut(DIM).for_each(|row| row.copy_from_slice(&fake().row("what is left")));
    };
    let digest = |_: &str| Some(TokenDigest::new(5));
    Careless { digest, truncated: true, ..Careless::new(write) }
}

#[test]
fn prompts_that_were_cut_to_the_same_tokens_have_their_rows_and_are_appended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("search.parquet");
    for (states, rows) in [(["long a", "long b"], 2), (["long c", "long d"], 4)] {
        let encoder = cached(cutting(), appending(&path));
        let answers = encoder.encode(&states).unwrap();
        for answer in &answers {
            assert!(answer.as_ref().unwrap().prompt().unwrap().truncated);
            assert_eq!(answer.as_ref().unwrap().prompt().unwrap().tokens, 9000);
        }
        assert_eq!(encoder.statistics().truncated, 2);
        drop(answers);
        assert_eq!(encoder.finish(json!({})).unwrap().unwrap().rows, rows);
    }
    let front = Cache::from(EmbeddingCache::open(&path).unwrap());
    let options = CachedEncoderOptions::default();
    let encoder = CachedEncoder::new(cutting(), Some(front), options).unwrap();
    let answers = encoder.encode(&["long a", "long e"]).unwrap();
    assert_eq!(answers[0].as_ref().unwrap().prompt(), None, "a cache does not record it");
    assert!(answers[1].is_ok(), "the tokens of the stored one are found out: {:?}", answers[1]);
}

#[test]
fn a_partly_written_row_is_not_completed_with_values_of_another() {
    let encoder = Careless::new(|call, states, rows| {
        if call == 0 {
            return write_right(states, rows);
        }
        rows.iter_mut().step_by(DIM).for_each(|first| *first = 1.0);
    });
    let coalescer = Coalescer::start(encoder, CoalescerOptions::default()).unwrap();
    let ask = |states: [&str; 2]| coalescer.submit(states.map(Arc::from)).unwrap().wait().unwrap();
    assert!(ask(["a", "b"]).iter().all(Result::is_ok));
    for answer in ask(["c", "d"]) {
        assert!(answer.is_err());
        assert!(answer.as_ref().unwrap_err().to_string().contains("NaN in column 1"), "{answer:?}");
    }
}

/// Fails from some call on.
struct Dying {
    calls: Arc<AtomicUsize>,
    alive: usize,
    identity: Identity,
}

impl Encoder for Dying {
    fn dim(&self) -> usize {
        DIM
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.alive {
            let (kind, message) = ("DeadError".to_owned(), "the device is lost".to_owned());
            return Err(EncoderError::Failed { kind, message, trace: None });
        }
        fake().encode_into(states, rows)
    }
}

#[test]
fn a_dead_encoder_fails_a_batch_after_a_handful_of_calls() {
    for alive in [0, 1] {
        let calls = Arc::default();
        let encoder = Dying { calls: Arc::clone(&calls), alive, identity: identity() };
        let coalescer = Coalescer::start(encoder, CoalescerOptions::default()).unwrap();
        let ask = |count: usize| {
            let states = (0..count).map(|i| Arc::from(format!("{count} {i}")));
            coalescer.submit(states).unwrap().wait().unwrap()
        };
        if alive == 1 {
            assert!(ask(3).iter().all(Result::is_ok));
        }
        let before = calls.load(Ordering::Relaxed);
        for answer in ask(256) {
            assert!(answer.as_ref().unwrap_err().to_string().contains("DeadError"), "{answer:?}");
        }
        let made = calls.load(Ordering::Relaxed) - before;
        assert!(made <= 6, "{made} calls");
    }
}

#[test]
fn poisoned_states_fail_alone_however_many_they_are() {
    let coalescer = Coalescer::start(fake(), CoalescerOptions::default()).unwrap();
    let states: Vec<String> =
        (0..64).map(|i| if i % 3 == 0 { format!("poison {i}") } else { format!("{i}") }).collect();
    let texts = states.iter().map(|state| Arc::from(state.as_str()));
    let answers = coalescer.submit(texts).unwrap().wait().unwrap();
    for (state, answer) in states.iter().zip(&answers) {
        assert_eq!(answer.is_ok(), !state.contains("poison"), "{state}: {answer:?}");
    }
}
