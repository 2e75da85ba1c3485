//! The thread that owns the queue and runs one batch after the other.

use std::collections::HashSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::checks::{Bad, SearchChecks};
use crate::embedding::{Answer, BatchMemory, Embedding, NoEmbedding, Report, Row, TokenDigest};
use crate::keep::Keep;
use crate::options::CoalescerOptions;
use crate::queue::{Queue, Request};
use crate::statistics::Counters;
use crate::{Encoder, EncoderError, EncoderResult};
use ebm_cache::{BadRow, StateKey};

/// A batch waits no longer than this for more callers.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// So many calls in a row fail before the encoder is asked for a state that it encoded before.
const FAILURES: usize = 3;
/// Pairs of equal embeddings of one batch that are re-encoded, each at batch size 1.
const RETRIES: usize = 8;

pub(crate) struct Worker {
    encoder: Arc<dyn Encoder>,
    options: CoalescerOptions,
    incoming: flume::Receiver<Request>,
    queue: Queue,
    /// Callers of the batch before.
    callers: usize,
    checks: SearchChecks,
    keep: Option<Keep>,
    counters: Arc<Counters>,
    /// A state that was encoded before: if it fails, too, it is the encoder that fails.
    worked: Option<Arc<str>>,
}

/// The calls of one batch.
struct Calls<'a> {
    states: &'a [Arc<str>],
    memory: BatchMemory,
    reports: Vec<Report>,
    /// Calls that failed since one succeeded.
    failures: usize,
    /// Why no more calls are made.
    dead: Option<EncoderError>,
}

impl Calls<'_> {
    fn answers(self, dim: usize) -> Vec<Answer> {
        let memory = self.memory;
        let answers = self.reports.into_iter().enumerate().map(|(index, report)| {
            let row = Row::new(&memory, index, dim);
            let prompt = report?;
            if row.iter().all(|value| value.is_nan()) {
                let reason = "the encoder did not write this row".to_owned();
                return Err(NoEmbedding::Bad { reason });
            }
            Ok(Embedding::new(row, prompt))
        });
        answers.collect()
    }
}

fn digest_of(answer: &Answer) -> Option<TokenDigest> {
    answer.as_ref().ok()?.prompt().digest
}

/// Why an embedding is bad, for a caller who knows states and not row numbers.
fn words(reason: &BadRow) -> String {
    match reason {
        BadRow::Duplicate { .. } => {
            "equal, up to rounding, to the embedding of another state with other tokens".to_owned()
        }
        BadRow::Conflict { .. } => {
            "differs by more than rounding from an earlier embedding of the same state".to_owned()
        }
        reason => reason.to_string(),
    }
}

impl Worker {
    pub(crate) fn new(
        encoder: Arc<dyn Encoder>,
        options: CoalescerOptions,
        incoming: flume::Receiver<Request>,
        checks: SearchChecks,
        keep: Option<Keep>,
        counters: Arc<Counters>,
    ) -> Self {
        let (queue, callers, worked) = (Queue::default(), 1, None);
        Self { encoder, options, incoming, queue, callers, checks, keep, counters, worked }
    }

    pub(crate) fn run(mut self) {
        loop {
            if self.queue.is_empty() {
                let Ok(request) = self.incoming.recv() else { return };
                self.queue.push(request);
            }
            self.gather();
            self.queue.tidy();
            let CoalescerOptions { max_states, max_bytes, .. } = self.options;
            let known = |state: &str| self.keep.as_ref()?.memory.get(state);
            let batch = self.queue.take(max_states, max_bytes, known);
            if batch.states.is_empty() {
                self.queue.tidy(); // all is known by now
                continue;
            }
            self.callers = batch.callers();
            if self.callers > 1 {
                self.counters.shared_batches.fetch_add(1, Ordering::Relaxed);
            }
            let start = Instant::now();
            let answers = self.encode(&batch.states);
            let (states, callers) = (batch.states.len(), self.callers);
            tracing::debug!(states, callers, waiting = self.queue.len(), took = ?start.elapsed(), "batch");
            if let Some(keep) = &self.keep {
                keep.keep(&batch.states, &answers);
            }
            self.queue.answer(&batch, &answers);
            self.checks.trim(self.keep.as_ref().map(|keep| &keep.memory));
        }
    }

    /// Takes up what waits; where there were several callers, waits a moment for them to come back.
    fn gather(&mut self) {
        self.incoming.try_iter().for_each(|request| self.queue.push(request));
        let deadline = Instant::now() + self.options.max_wait.min(LONGEST_WAIT);
        while self.queue.len() < self.callers {
            let Ok(request) = self.incoming.recv_deadline(deadline) else { return };
            self.queue.push(request);
        }
    }

    /// One answer per state; each embedding has passed the row checks.
    fn encode(&mut self, states: &[Arc<str>]) -> Vec<Answer> {
        let mut answers = self.unchecked(states);
        let bad = self.checks.check(states, &answers);
        self.refuse(states, &mut answers, bad);
        answers
    }

    /// Takes out of the answers the embeddings that are still bad when re-encoded at batch size 1.
    fn refuse(&mut self, states: &[Arc<str>], answers: &mut [Answer], bad: Vec<Bad>) {
        let mut verified = HashSet::new();
        let mut retries = RETRIES;
        for Bad { place, reason } in bad {
            let state = &states[place];
            let again = retries > 0;
            let settled = match &reason {
                BadRow::Duplicate { of, .. } => {
                    retries = retries.saturating_sub(1);
                    if verified.insert(*of) {
                        let digest = digest_of(&answers[place]);
                        self.verify(*of, digest, again, states, answers);
                    }
                    self.settle(state, &answers[place], again)
                }
                BadRow::Conflict { .. } if again => {
                    retries -= 1;
                    self.decide(state)
                }
                _ => None,
            };
            answers[place] = settled.unwrap_or_else(|| {
                self.counters.bad.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%reason, state = &**state, "an embedding failed the row checks");
                Err(NoEmbedding::Bad { reason: words(&reason) })
            });
        }
    }

    /// The embedding of a state that was equal to another's, now that the other was re-encoded: the
    /// embedding itself if it is good by now, or else that of the state at batch size 1.
    fn settle(&mut self, state: &Arc<str>, answer: &Answer, again: bool) -> Option<Answer> {
        if self.checks.check_one(state, answer).is_ok() {
            return Some(answer.clone());
        }
        again.then(|| self.alone(state)).flatten()
    }

    /// The embedding of a state at batch size 1, if it passes the checks.
    fn alone(&mut self, state: &Arc<str>) -> Option<Answer> {
        let alone = self.unchecked(std::slice::from_ref(state)).pop()?;
        let good = alone.is_ok() && self.checks.check_one(state, &alone).is_ok();
        good.then_some(alone)
    }

    /// Of two embeddings of a state that differ either may be wrong: re-encodes the state at batch
    /// size 1, and forgets the earlier embedding. One that is stored stays unless the state can be
    /// encoded.
    fn decide(&mut self, state: &Arc<str>) -> Option<Answer> {
        let key = StateKey::of(state);
        let alone = self.unchecked(std::slice::from_ref(state)).pop()?;
        if alone.is_err() && self.checks.is_stored(key) {
            return None;
        }
        self.checks.retract(key);
        if let Some(keep) = &self.keep {
            keep.replace(state, None); // what is good is kept with its batch
        }
        let good = alone.is_ok() && self.checks.check_one(state, &alone).is_ok();
        good.then_some(alone)
    }

    /// Of two equal embeddings either may be wrong: re-encodes the earlier state at batch size 1.
    /// If its tokens are those of the other state (`digest`), both embeddings are right. Otherwise
    /// the new embedding replaces the earlier one; without one, the state has no embedding any
    /// more, unless it is stored: nothing says then that the stored one is wrong.
    fn verify(
        &mut self,
        key: StateKey,
        digest: Option<TokenDigest>,
        again: bool,
        states: &[Arc<str>],
        answers: &mut [Answer],
    ) {
        let in_front = self.checks.text_in_front(key);
        let place = states.iter().position(|state| StateKey::of(state) == key);
        let in_batch = place.map(|place| Arc::clone(&states[place]));
        let kept = || self.keep.as_ref()?.text_of(key);
        let Some(text) = in_front.clone().or(in_batch).or_else(kept) else {
            return self.checks.retract(key); // nobody can be given that embedding any more
        };
        let alone = again.then(|| self.unchecked(std::slice::from_ref(&text)).pop()).flatten();
        let found = alone.as_ref().and_then(digest_of);
        self.checks.note_digest(key, found);
        if let Some((sink, found)) = self.keep.as_ref().and_then(|k| k.appended.as_ref()).zip(found)
        {
            sink.note_tokens(key, found);
        }
        if found.is_some() && found == digest {
            return;
        }
        if in_front.is_some() {
            return; // it passed the checks when it was opened, and is not ours to change
        }
        let no_row = alone.as_ref().is_none_or(Result::is_err);
        if no_row && self.checks.is_stored(key) {
            return;
        }
        self.checks.retract(key);
        let good = alone.filter(|a| a.is_ok() && self.checks.check_one(&text, a).is_ok());
        if let Some(place) = place {
            let reason =
                "equal to another state's embedding, and not confirmed when encoded unbatched";
            let none = || Err(NoEmbedding::Bad { reason: reason.to_owned() });
            answers[place] = good.unwrap_or_else(none);
        } else if let Some(keep) = &self.keep {
            keep.replace(&text, good.as_ref());
        }
    }

    /// One answer per state, not checked yet.
    fn unchecked(&mut self, states: &[Arc<str>]) -> Vec<Answer> {
        let values = states.len() * self.encoder.dim();
        let mut calls = Calls {
            states,
            // Fresh for each batch: a value that the encoder does not write stays NaN.
            memory: std::iter::repeat_n(f32::NAN, values).collect(),
            reports: Vec::with_capacity(states.len()),
            failures: 0,
            dead: None,
        };
        self.call_part(&mut calls, 0..states.len());
        calls.answers(self.encoder.dim())
    }

    /// Answers some states of a batch. Where a call fails as a whole, its halves are tried, as long
    /// as the encoder works at all.
    fn call_part(&mut self, calls: &mut Calls<'_>, part: Range<usize>) {
        let error = match calls.dead.clone() {
            Some(dead) => dead,
            None => match self.call(calls, part.clone()) {
                Ok(reports) => {
                    calls.failures = 0;
                    calls.reports.extend(reports);
                    return;
                }
                Err(error) => error,
            },
        };
        if calls.dead.is_none() {
            calls.failures += 1;
            if calls.failures >= FAILURES {
                calls.failures = 0;
                if !self.still_works(calls) {
                    tracing::error!(%error, "the encoder fails on states that should work");
                    calls.dead = Some(error.clone());
                }
            }
        }
        if calls.dead.is_some() || part.len() == 1 {
            calls.reports.extend(part.map(|_| Err(error.clone().into())));
            return;
        }
        let middle = part.start + part.len() / 2;
        self.call_part(calls, part.start..middle);
        self.call_part(calls, middle..part.end);
    }

    /// Whether the encoder still encodes a state that it encoded before; where there is none yet,
    /// whether it encodes any of three of the batch.
    fn still_works(&mut self, calls: &Calls<'_>) -> bool {
        let count = calls.states.len();
        let probes = match &self.worked {
            Some(state) => vec![Arc::clone(state)],
            None => [count - 1, count / 2, count / 4].map(|i| Arc::clone(&calls.states[i])).into(),
        };
        probes.into_iter().any(|state| {
            let mut row = vec![f32::NAN; self.encoder.dim()];
            let works = self.call_encoder(std::slice::from_ref(&state), &mut row).is_ok();
            if works {
                self.worked = Some(state);
            }
            works
        })
    }

    /// Encodes some states of a batch into its memory.
    fn call(&mut self, calls: &mut Calls<'_>, part: Range<usize>) -> EncoderResult<Vec<Report>> {
        let dim = self.encoder.dim();
        let states = &calls.states[part.clone()];
        // Written in place by the encoder, then shared: the values are never copied.
        let shared = || EncoderError::failed("MemoryError", "a new batch is shared already");
        let rows = Arc::get_mut(&mut calls.memory)
            .and_then(|values| values.get_mut(part.start * dim..part.end * dim))
            .ok_or_else(shared)?;
        rows.fill(f32::NAN); // also what a call that failed has written
        let reports = self.call_encoder(states, rows)?;
        if let Some(place) = reports.iter().position(Report::is_ok) {
            self.worked = Some(Arc::clone(&states[place]));
        }
        Ok(reports)
    }

    fn call_encoder(&self, states: &[Arc<str>], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        let texts: Vec<&str> = states.iter().map(|state| &**state).collect();
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        self.counters.encoded.fetch_add(texts.len() as u64, Ordering::Relaxed);
        let called = catch_unwind(AssertUnwindSafe(|| self.encoder.encode_into(&texts, rows)));
        let panicked = |_| EncoderError::failed("panic", "the encoder panicked");
        let reports = called.map_err(panicked)??;
        if reports.len() != texts.len() {
            let message = format!("{} reports for {} states", reports.len(), texts.len());
            return Err(EncoderError::failed("EncoderError", message));
        }
        Ok(reports)
    }
}
