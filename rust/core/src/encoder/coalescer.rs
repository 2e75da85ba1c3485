//! One encoder for many callers: their requests merged into batches on a thread of its own.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::queue::{Queue, Request};
use super::row::{Encoded, Row};
use super::spare::Spare;
use super::{Encoder, EncoderError, EncoderResult, RowReport};
use crate::cache::Identity;

/// A batch waits no longer than this for more callers.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How requests are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoalescerOptions {
    /// How long a batch waits for more callers, where there were several of late.
    ///
    /// A caller that is alone never waits; an hour is the longest wait.
    pub max_wait: Duration,
    /// Most states of a batch.
    pub max_states: usize,
    /// Most bytes of text in a batch, a measure of its tokens; a longer state is a batch of its own.
    pub max_bytes: usize,
    /// Most requests that wait; whoever asks then has to wait as well.
    pub queue: usize,
}

impl Default for CoalescerOptions {
    fn default() -> Self {
        let max_wait = Duration::from_millis(3);
        Self { max_wait, max_states: 256, max_bytes: 64 * 1024, queue: 1024 }
    }
}

/// What a coalescer has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoalescerStatistics {
    /// Requests that were taken.
    pub requests: u64,
    /// States in them, each time it was asked for.
    pub states: u64,
    /// Calls of the encoder.
    pub calls: u64,
    /// States that were given to the encoder; fewer than `states` where callers asked for the same.
    pub encoded: u64,
    /// Batches that served more than one caller.
    pub shared_batches: u64,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    states: AtomicU64,
    calls: AtomicU64,
    encoded: AtomicU64,
    shared_batches: AtomicU64,
}

/// An encoder that many threads and tasks ask at the same time.
///
/// Dropping it answers what has been asked and then ends its thread.
#[derive(Debug)]
pub struct Coalescer {
    requests: Option<flume::Sender<Request>>,
    worker: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    identity: Identity,
    dim: usize,
}

impl Coalescer {
    /// Puts an encoder behind a queue, on a thread of its own.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] if a limit is 0, or the system gives no thread.
    pub fn start(
        encoder: impl Encoder + 'static,
        options: CoalescerOptions,
    ) -> EncoderResult<Self> {
        Self::start_with(encoder, options, Forget)
    }

    pub(super) fn start_with(
        encoder: impl Encoder + 'static,
        options: CoalescerOptions,
        after: impl Aftermath + 'static,
    ) -> EncoderResult<Self> {
        if options.max_states.min(options.max_bytes).min(options.queue) == 0 {
            let message = "max_states, max_bytes and queue must be at least 1";
            return Err(EncoderError::Argument(message.to_owned()));
        }
        let (requests, incoming) = flume::bounded(options.queue);
        let counters = Arc::new(Counters::default());
        let (dim, identity) = (encoder.dim(), encoder.identity().clone());
        let worker = Worker {
            encoder,
            options,
            incoming,
            queue: Queue::default(),
            callers: 1,
            after,
            counters: Arc::clone(&counters),
            spare: Spare::default(),
        };
        let worker = thread::Builder::new()
            .name("ebm-encode".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EncoderError::Argument(format!("cannot start a thread: {error}")))?;
        Ok(Self { requests: Some(requests), worker: Some(worker), counters, identity, dim })
    }

    /// Length of every row.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The identity of the encoder.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Asks for rows; waits for room in the queue if it is full.
    ///
    /// # Errors
    /// [`EncoderError::Closed`] if the encoder's thread has ended.
    pub fn submit(&self, states: impl IntoIterator<Item = Arc<str>>) -> EncoderResult<Pending> {
        let (request, pending) = self.request(states);
        let requests = self.requests.as_ref().ok_or(EncoderError::Closed)?;
        requests.send(request).map_err(|_| EncoderError::Closed)?;
        Ok(pending)
    }

    /// Asks for rows, if there is room in the queue.
    ///
    /// # Errors
    /// [`EncoderError::Busy`] if there is none; [`EncoderError::Closed`].
    pub fn try_submit(&self, states: impl IntoIterator<Item = Arc<str>>) -> EncoderResult<Pending> {
        let (request, pending) = self.request(states);
        let requests = self.requests.as_ref().ok_or(EncoderError::Closed)?;
        requests.try_send(request).map_err(|error| match error {
            flume::TrySendError::Full(_) => EncoderError::Busy(requests.len()),
            flume::TrySendError::Disconnected(_) => EncoderError::Closed,
        })?;
        Ok(pending)
    }

    /// Asks for rows from a task; neither the queue nor the encoder blocks the runtime.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub async fn encode(
        &self,
        states: impl IntoIterator<Item = Arc<str>>,
    ) -> EncoderResult<Vec<Encoded>> {
        let (request, pending) = self.request(states);
        let requests = self.requests.as_ref().ok_or(EncoderError::Closed)?;
        requests.send_async(request).await.map_err(|_| EncoderError::Closed)?;
        pending.answer().await
    }

    /// What has been done so far.
    #[must_use]
    pub fn statistics(&self) -> CoalescerStatistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CoalescerStatistics {
            requests: read(&self.counters.requests),
            states: read(&self.counters.states),
            calls: read(&self.counters.calls),
            encoded: read(&self.counters.encoded),
            shared_batches: read(&self.counters.shared_batches),
        }
    }

    fn request(&self, states: impl IntoIterator<Item = Arc<str>>) -> (Request, Pending) {
        let states: Vec<Arc<str>> = states.into_iter().collect();
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.states.fetch_add(states.len() as u64, Ordering::Relaxed);
        let (reply, answer) = flume::bounded(1);
        (Request::new(states, reply), Pending { answer })
    }
}

impl Drop for Coalescer {
    fn drop(&mut self) {
        self.requests = None; // the worker ends when it has answered what is in the queue
        if let Some(worker) = self.worker.take() {
            // It catches the encoder's panics; were there one of its own, waiting callers are told
            // that it has gone.
            let _ = worker.join();
        }
    }
}

/// Rows that have been asked for. Dropping it gives them up; nothing is written anywhere then.
#[derive(Debug)]
#[must_use = "the rows come with the answer"]
pub struct Pending {
    answer: flume::Receiver<EncoderResult<Vec<Encoded>>>,
}

impl Pending {
    /// Waits for the answer: one per state, in the order asked.
    ///
    /// # Errors
    /// [`EncoderError::Closed`] if the encoder's thread ended before.
    pub fn wait(self) -> EncoderResult<Vec<Encoded>> {
        self.answer.recv().map_err(|_| EncoderError::Closed)?
    }

    /// Waits for the answer, and gives it up after a time.
    ///
    /// # Errors
    /// [`EncoderError::TimedOut`]; [`EncoderError::Closed`].
    pub fn wait_for(self, time: Duration) -> EncoderResult<Vec<Encoded>> {
        let Some(deadline) = Instant::now().checked_add(time) else { return self.wait() };
        self.answer.recv_deadline(deadline).map_err(|error| match error {
            flume::RecvTimeoutError::Timeout => EncoderError::TimedOut(time),
            flume::RecvTimeoutError::Disconnected => EncoderError::Closed,
        })?
    }

    /// The answer as a future; dropping it gives the answer up.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn answer(self) -> impl Future<Output = EncoderResult<Vec<Encoded>>> + Send {
        let answer = self.answer.into_recv_async();
        async move { answer.await.map_err(|_| EncoderError::Closed)? }
    }
}

/// What becomes of rows beyond the callers that asked for them.
pub(super) trait Aftermath: Send {
    /// What an earlier batch made of a state.
    fn known(&self, state: &str) -> Option<Encoded>;

    /// Takes note of a batch's answers, before its callers get them.
    fn encoded(&mut self, states: &[Arc<str>], answers: &[Encoded]);

    /// Does what callers need not wait for, after they have got them.
    fn answered(&mut self);
}

/// Nothing becomes of them.
struct Forget;

impl Aftermath for Forget {
    fn known(&self, _: &str) -> Option<Encoded> {
        None
    }

    fn encoded(&mut self, _: &[Arc<str>], _: &[Encoded]) {}

    fn answered(&mut self) {}
}

/// The thread that owns the encoder.
struct Worker<E, A> {
    encoder: E,
    options: CoalescerOptions,
    incoming: flume::Receiver<Request>,
    queue: Queue,
    /// Callers of the batch before.
    callers: usize,
    after: A,
    counters: Arc<Counters>,
    spare: Spare,
}

impl<E: Encoder, A: Aftermath> Worker<E, A> {
    fn run(mut self) {
        loop {
            if self.queue.is_empty() {
                let Ok(request) = self.incoming.recv() else { return };
                self.queue.push(request);
            }
            self.gather();
            self.queue.tidy();
            let CoalescerOptions { max_states, max_bytes, .. } = self.options;
            let batch = self.queue.take(max_states, max_bytes, |state| self.after.known(state));
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
            self.after.encoded(&batch.states, &answers);
            self.queue.answer(&batch, &answers);
            self.after.answered();
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

    /// One answer per state. Where a call fails as a whole, its halves are tried.
    fn encode(&mut self, states: &[Arc<str>]) -> Vec<Encoded> {
        match self.call(states) {
            Ok(answers) => answers,
            Err(error) if states.len() == 1 => {
                vec![Encoded { report: RowReport::Error(error), row: None }]
            }
            Err(_) => {
                let (left, right) = states.split_at(states.len() / 2);
                [self.encode(left), self.encode(right)].concat()
            }
        }
    }

    fn call(&mut self, states: &[Arc<str>]) -> EncoderResult<Vec<Encoded>> {
        let texts: Vec<&str> = states.iter().map(|state| &**state).collect();
        let dim = self.encoder.dim();
        // Written in place by the encoder, then shared: the values are never copied.
        let mut memory = self.spare.take(texts.len() * dim);
        let rows = Arc::get_mut(&mut memory)
            .and_then(|values| values.get_mut(..texts.len() * dim))
            .ok_or_else(|| failed("MemoryError", "a new batch is shared already"))?;
        rows.iter_mut().step_by(dim.max(1)).for_each(|first| *first = f32::NAN);
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        self.counters.encoded.fetch_add(texts.len() as u64, Ordering::Relaxed);
        let called = catch_unwind(AssertUnwindSafe(|| self.encoder.encode_into(&texts, rows)));
        let reports = called.map_err(|_| failed("panic", "the encoder panicked"))??;
        if reports.len() != texts.len() {
            let message = format!("{} reports for {} states", reports.len(), texts.len());
            return Err(failed("EncoderError", &message));
        }
        let answers = reports.into_iter().enumerate().map(|(index, report)| {
            if !report.is_ok() {
                return Encoded { report, row: None };
            }
            let row = Row::new(&memory, index, dim);
            if row.first().is_some_and(|first| first.is_nan()) {
                let reason = "the encoder did not write this row".to_owned();
                return Encoded { report: RowReport::Bad { reason }, row: None };
            }
            Encoded { report, row: Some(row) }
        });
        let answers = answers.collect();
        self.spare.keep(memory);
        Ok(answers)
    }
}

fn failed(kind: &str, message: &str) -> EncoderError {
    EncoderError::Failed { kind: kind.to_owned(), message: message.to_owned(), trace: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::queue::Batch;

    /// Requests in a queue that no worker empties, so that what a batch holds can be told.
    fn waiting(requests: &[&[&str]]) -> (Queue, Vec<flume::Receiver<EncoderResult<Vec<Encoded>>>>) {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        for states in requests {
            let (reply, answer) = flume::bounded(1);
            queue.push(Request::new(states.iter().map(|s| Arc::from(*s)).collect(), reply));
            answers.push(answer);
        }
        (queue, answers)
    }

    fn unknown(_: &str) -> Option<Encoded> {
        None
    }

    fn texts(batch: &Batch) -> Vec<&str> {
        batch.states.iter().map(|state| &**state).collect()
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_large_one() {
        let large: Vec<String> = (0..100).map(|i| format!("large {i}")).collect();
        let large: Vec<&str> = large.iter().map(String::as_str).collect();
        let (mut queue, _answers) = waiting(&[&large, &["small a", "small b"]]);
        let batch = queue.take(6, usize::MAX, unknown);
        assert_eq!(
            texts(&batch),
            ["large 0", "small a", "large 1", "small b", "large 2", "large 3"]
        );
        assert_eq!(batch.callers(), 2);
    }

    #[test]
    fn equal_states_of_several_callers_are_in_a_batch_once() {
        let (mut queue, _answers) = waiting(&[&["a", "b"], &["b", "a"], &["a"]]);
        let batch = queue.take(10, usize::MAX, unknown);
        assert_eq!(texts(&batch), ["a", "b"]);
        assert_eq!(batch.callers(), 3);
    }

    #[test]
    fn a_batch_keeps_its_bytes_but_holds_at_least_one_state() {
        let (mut queue, _answers) = waiting(&[&["twelve bytes", "two", "three"]]);
        assert_eq!(texts(&queue.take(10, 8, unknown)), ["twelve bytes"]);
        assert_eq!(texts(&queue.take(10, 8, unknown)), ["two", "three"]);
        assert!(queue.take(10, 8, unknown).states.is_empty());
    }

    #[test]
    fn a_caller_that_has_given_up_is_forgotten() {
        let (mut queue, mut answers) = waiting(&[&["a"], &["b"]]);
        answers.remove(0);
        queue.tidy();
        assert_eq!(texts(&queue.take(10, 100, unknown)), ["b"]);
    }
}
