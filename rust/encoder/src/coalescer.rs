//! One encoder for many callers: their requests merged into batches on its own thread.

use std::fmt;
use std::future::Future;
use std::mem;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::checks::SearchChecks;
use crate::embedding::Answer;
use crate::keep::Keep;
use crate::options::CoalescerOptions;
use crate::queue::Request;
use crate::statistics::{CoalescerStatistics, Counters};
use crate::wait::Patience;
use crate::worker::Worker;
use crate::{Encoder, EncoderError, EncoderResult};
use ebm_cache::Identity;

/// An encoder that several threads refer to.
#[derive(Clone)]
struct SharedEncoder(Arc<dyn Encoder>);

impl fmt::Debug for SharedEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoder({} values)", self.0.dim())
    }
}

/// An encoder that many threads and tasks ask at the same time.
///
/// Every embedding passes the row checks before it is handed out: one with NaN or infinite values,
/// a zero vector, a norm outlier, or a copy of another state's embedding (of this or an earlier
/// batch) is answered as [`NoEmbedding::Bad`](crate::NoEmbedding::Bad). Dropping it answers what
/// has been asked and then ends its thread.
#[derive(Debug)]
pub struct Coalescer {
    requests: Option<flume::Sender<Request>>,
    worker: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    encoder: SharedEncoder,
    /// The process in which the thread runs.
    process: u32,
}

impl Coalescer {
    /// Puts an encoder behind a queue, on its own thread.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] if a limit is 0, or the system gives no thread.
    pub fn start(
        encoder: impl Encoder + 'static,
        options: CoalescerOptions,
    ) -> EncoderResult<Self> {
        let checks = SearchChecks::new(encoder.dim());
        Self::start_with(Arc::new(encoder), options, checks, None)
    }

    pub(crate) fn start_with(
        encoder: Arc<dyn Encoder>,
        options: CoalescerOptions,
        checks: SearchChecks,
        keep: Option<Keep>,
    ) -> EncoderResult<Self> {
        if options.max_states.min(options.max_bytes).min(options.queue) == 0 {
            let message = "max_states, max_bytes and queue must be at least 1";
            return Err(EncoderError::Argument(message.to_owned()));
        }
        let (requests, incoming) = flume::bounded(options.queue);
        let counters = Arc::new(Counters::default());
        let worker = Worker::new(
            Arc::clone(&encoder),
            options,
            incoming,
            checks,
            keep,
            Arc::clone(&counters),
        );
        let worker = thread::Builder::new()
            .name("ebm-encode".to_owned())
            .spawn(move || worker.run())
            .map_err(|error| EncoderError::Argument(format!("cannot start a thread: {error}")))?;
        let (requests, worker) = (Some(requests), Some(worker));
        let encoder = SharedEncoder(encoder);
        Ok(Self { requests, worker, counters, encoder, process: process::id() })
    }

    /// Length of every embedding.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.encoder.0.dim()
    }

    /// The identity of the encoder.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.encoder.0.identity()
    }

    /// Asks for embeddings; waits for room in the queue if it is full.
    ///
    /// # Errors
    /// [`EncoderError::Closed`] if the encoder's thread has ended, [`EncoderError::Forked`] if it
    /// stayed in another process.
    pub fn submit(&self, states: impl IntoIterator<Item = Arc<str>>) -> EncoderResult<Pending> {
        self.submit_with(states, &mut Patience::without_end())
    }

    /// Asks for embeddings, if there is room in the queue.
    ///
    /// # Errors
    /// [`EncoderError::Busy`] if there is none; [`EncoderError::Closed`] and
    /// [`EncoderError::Forked`] as for [`Coalescer::submit`].
    pub fn try_submit(&self, states: impl IntoIterator<Item = Arc<str>>) -> EncoderResult<Pending> {
        let requests = self.queue()?;
        let (request, pending) = self.request(states);
        let count = request.len();
        requests.try_send(request).map_err(|error| match error {
            flume::TrySendError::Full(_) => EncoderError::Busy(requests.len()),
            flume::TrySendError::Disconnected(_) => EncoderError::Closed,
        })?;
        self.accepted(count);
        Ok(pending)
    }

    /// Asks for embeddings from a task; neither the queue nor the encoder blocks the runtime.
    ///
    /// # Errors
    /// As [`Coalescer::submit`].
    pub async fn encode(
        &self,
        states: impl IntoIterator<Item = Arc<str>>,
    ) -> EncoderResult<Vec<Answer>> {
        let requests = self.queue()?;
        let (request, pending) = self.request(states);
        let count = request.len();
        requests.send_async(request).await.map_err(|_| EncoderError::Closed)?;
        self.accepted(count);
        pending.answer().await
    }

    /// Asks for embeddings and waits for them, as long as the caller's patience lasts.
    pub(crate) fn ask(
        &self,
        states: Vec<Arc<str>>,
        patience: &mut Patience<'_>,
    ) -> EncoderResult<Vec<Answer>> {
        let pending = self.submit_with(states, patience)?;
        pending.wait_with(patience)
    }

    fn submit_with(
        &self,
        states: impl IntoIterator<Item = Arc<str>>,
        patience: &mut Patience<'_>,
    ) -> EncoderResult<Pending> {
        let requests = self.queue()?;
        let (request, pending) = self.request(states);
        let count = request.len();
        let mut sent = Err(EncoderError::Closed);
        let mut request = Some(request);
        self.encoder.0.block_on(&mut || {
            if let Some(request) = request.take() {
                sent = patience.send(requests, request);
            }
        });
        sent?;
        self.accepted(count);
        Ok(pending)
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
            bad: read(&self.counters.bad),
        }
    }

    fn queue(&self) -> EncoderResult<&flume::Sender<Request>> {
        if self.is_forked() {
            return Err(EncoderError::Forked);
        }
        self.requests.as_ref().ok_or(EncoderError::Closed)
    }

    fn is_forked(&self) -> bool {
        self.process != process::id()
    }

    fn request(&self, states: impl IntoIterator<Item = Arc<str>>) -> (Request, Pending) {
        let (reply, answer) = flume::bounded(1);
        let encoder = self.encoder.clone();
        (Request::new(states.into_iter().collect(), reply), Pending { answer, encoder })
    }

    fn accepted(&self, states: usize) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.states.fetch_add(states as u64, Ordering::Relaxed);
    }
}

impl Drop for Coalescer {
    fn drop(&mut self) {
        if self.is_forked() {
            // The thread is in the other process, and so may be the locks of the channel to it: both
            // are skipped, since waiting for them would have no end.
            mem::forget((self.requests.take(), self.worker.take()));
            return;
        }
        self.requests = None; // the worker ends when it has answered what is in the queue
        let mut worker = self.worker.take();
        self.encoder.0.block_on(&mut || {
            if let Some(worker) = worker.take() {
                // It catches the encoder's panics; after a panic of the worker, waiting callers get
                // `Closed`.
                let _ = worker.join();
            }
        });
    }
}

/// Embeddings that have been asked for. Dropping it cancels the request; nothing is written
/// anywhere then.
#[derive(Debug)]
#[must_use = "the rows come with the answer"]
pub struct Pending {
    answer: flume::Receiver<EncoderResult<Vec<Answer>>>,
    encoder: SharedEncoder,
}

impl Pending {
    /// Waits for the answer: one per state, in the order asked.
    ///
    /// # Errors
    /// [`EncoderError::Closed`] if the encoder's thread ended before.
    pub fn wait(self) -> EncoderResult<Vec<Answer>> {
        self.wait_with(&mut Patience::without_end())
    }

    /// Waits for the answer, and gives it up after a time.
    ///
    /// # Errors
    /// [`EncoderError::TimedOut`]; [`EncoderError::Closed`].
    pub fn wait_for(self, time: Duration) -> EncoderResult<Vec<Answer>> {
        self.wait_with(&mut Patience::within(Instant::now(), Some(time)))
    }

    fn wait_with(self, patience: &mut Patience<'_>) -> EncoderResult<Vec<Answer>> {
        let mut answer = Err(EncoderError::Closed);
        self.encoder.0.block_on(&mut || answer = patience.receive(&self.answer));
        answer?
    }

    /// The answer as a future; dropping it gives the answer up.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn answer(self) -> impl Future<Output = EncoderResult<Vec<Answer>>> + Send {
        let answer = self.answer.into_recv_async();
        async move { answer.await.map_err(|_| EncoderError::Closed)? }
    }
}
