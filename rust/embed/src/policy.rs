//! A Python policy on its own thread, and the requests of many threads merged into its calls.

use std::collections::VecDeque;
use std::mem;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ebm_search::search::{
    Candidate, Control, NoCandidates, Policy, PolicyError, Proposal, Query, Stop,
};
use flume::{Receiver, RecvTimeoutError, Sender};
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyTuple};

use crate::attached::detached;
use crate::encoder::{PythonEncoder, PythonTime, STACK};
use crate::error::EmbedError;
use crate::exception::attach;
use crate::interpreter::Interpreter;
use crate::log;
use crate::options::PythonEncoderOptions;
use crate::policy_options::PythonPolicyOptions;

/// A state's tactics with their log-probabilities, or why there are none.
type Tactics = (Vec<(String, f64)>, Option<String>);

type Answer = Result<Vec<Proposal>, EmbedError>;

/// One caller's states.
#[derive(Debug)]
struct Request {
    states: Vec<Arc<str>>,
    reply: Sender<Answer>,
}

/// A causal language model in the Python package `ebm_encode` that proposes tactics.
///
/// A candidate's log-probability is the sum over its tokens and the one that ends it, in the model's own
/// distribution. One thread does all Python work. Requests that wait at the same time share a call, and
/// whoever waits holds no lock of Python and stops waiting when its [`Control`] says so; a call that
/// nobody waits for any more ends at its next token.
///
/// A thread that is attached to Python may load, ask and drop it, too. In a process that was forked
/// since, requests are refused.
#[derive(Debug)]
pub struct PythonPolicy {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    closed: Arc<AtomicBool>,
    time: PythonTime,
    python: &'static Interpreter,
    /// The process in which the thread runs.
    process: u32,
}

impl PythonPolicy {
    /// Loads a model for a policy alone.
    ///
    /// Of the model's options it takes the path, the dtype, the device, the revisions, whether its code
    /// may run, and the threads; template and lengths are those of the policy.
    ///
    /// # Errors
    /// [`EmbedError::Python`] with what Python raises, and [`EmbedError::Thread`].
    pub fn load(
        python: &'static Interpreter,
        model: &PythonEncoderOptions,
        options: PythonPolicyOptions,
    ) -> Result<Self, EmbedError> {
        let (model, policy) = (model.clone(), options.clone());
        Self::start(python, options, move |py| {
            let arguments =
                (log::forward(py)?, model.threads, policy.arguments_with_model(py, &model)?);
            py.import("ebm_encode.bridge")?.call_method1("load_policy", arguments)
        })
    }

    /// Makes a policy that shares the weights of an encoder. Both may be used at the same time: the
    /// encoder's passes and the policy's, one for each token, take turns.
    ///
    /// # Errors
    /// [`EmbedError::Python`] with what Python raises: an `ArgumentError` if the encoder was loaded
    /// without [`PythonEncoderOptions::keep_head`]. [`EmbedError::Thread`].
    pub fn beside(
        encoder: &PythonEncoder,
        options: PythonPolicyOptions,
    ) -> Result<Self, EmbedError> {
        let object = attach(|py| encoder.object(py))?;
        let policy = options.clone();
        Self::start(encoder.interpreter(), options, move |py| {
            let arguments = (object, policy.arguments(py)?);
            py.import("ebm_encode.bridge")?.call_method1("policy_beside", arguments)
        })
    }

    /// A clock of the time that is spent in Python.
    #[must_use]
    pub fn time(&self) -> PythonTime {
        self.time.clone()
    }

    fn start(
        python: &'static Interpreter,
        options: PythonPolicyOptions,
        load: impl FnOnce(Python<'_>) -> PyResult<Bound<'_, PyAny>> + Send + 'static,
    ) -> Result<Self, EmbedError> {
        let (requests, incoming) = flume::unbounded();
        let (loaded, ready) = flume::bounded::<Result<(), EmbedError>>(1);
        let closed = Arc::new(AtomicBool::new(false));
        let time = PythonTime::default();
        let (over, clock) = (Arc::clone(&closed), time.clone());
        let work = move || {
            let made = attach(|py| Ok(load(py)?.unbind()));
            let policy = match made {
                Ok(policy) => policy,
                Err(exception) => {
                    let _ = loaded.send(Err(exception.into()));
                    return;
                }
            };
            let _ = loaded.send(Ok(()));
            let mut worker = Worker { policy, options, incoming, closed: over, time: clock };
            worker.run();
            // While attached; otherwise the model would stay until the next call of Python.
            let _ = Python::try_attach(|_| drop(worker));
        };
        let thread = detached(|| {
            // Known to Python for its whole life, and detached for as long as it waits.
            let live = || Python::attach(|py| py.detach(work));
            thread::Builder::new()
                .name("ebm-encode-policy".to_owned())
                .stack_size(STACK)
                .spawn(live)
                .map_err(|error| EmbedError::Thread(error.to_string()))
        })?;
        let process = process::id();
        let (requests, thread) = (Some(requests), Some(thread));
        // Dropped if it could not be loaded, which ends the thread.
        let policy = Self { requests, thread, closed, time, python, process };
        detached(|| ready.recv()).map_err(|_| EmbedError::Closed)??;
        Ok(policy)
    }

    fn ask(&self, queries: &[Query<'_>], control: &Control) -> Result<Answer, Stop> {
        if self.process != process::id() {
            return Ok(Err(EmbedError::Forked));
        }
        let (reply, answer) = flume::bounded(1);
        let states = queries.iter().map(|query| Arc::from(query.state)).collect();
        let sent = self.requests.as_ref().map(|requests| requests.send(Request { states, reply }));
        if !matches!(sent, Some(Ok(()))) {
            return Ok(Err(EmbedError::Closed));
        }
        detached(|| {
            loop {
                control.check()?;
                match answer.recv_timeout(control.wait(Control::TICK)) {
                    Ok(answer) => return Ok(answer),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(Err(EmbedError::Closed)),
                }
            }
        })
    }
}

impl Policy for PythonPolicy {
    fn name(&self) -> &'static str {
        "hf"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        control.check()?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self.ask(queries, control)?;
        answer.map_err(|error| PolicyError::Failed { policy: "hf", cause: error.into() })
    }
}

impl Drop for PythonPolicy {
    fn drop(&mut self) {
        let (requests, thread) = (self.requests.take(), self.thread.take());
        if self.process != process::id() {
            mem::forget((requests, thread)); // the thread is not here to be ended
            return;
        }
        self.closed.store(true, Ordering::Release);
        detached(|| {
            drop(requests); // which tells the thread to end
            if let Some(Err(_)) = thread.map(JoinHandle::join) {
                tracing::warn!("the thread of a policy ended by a panic");
            }
        });
        if let Err(error) = self.python.flush() {
            tracing::warn!(%error, "what Python has buffered may be lost");
        }
    }
}

/// What runs on the thread.
struct Worker {
    policy: Py<PyAny>,
    options: PythonPolicyOptions,
    incoming: Receiver<Request>,
    closed: Arc<AtomicBool>,
    time: PythonTime,
}

impl Worker {
    fn run(&mut self) {
        let mut waiting = VecDeque::new();
        let mut callers = 1;
        loop {
            if waiting.is_empty() {
                let Ok(request) = self.incoming.recv() else { return };
                waiting.push_back(request);
            }
            self.gather(&mut waiting, callers);
            waiting.retain(|request: &Request| !request.reply.is_disconnected());
            let batch = self.take(&mut waiting);
            if batch.is_empty() {
                continue;
            }
            callers = batch.len();
            let start = Instant::now();
            let answers = self.answers(&batch);
            self.time.add(start.elapsed());
            for (request, answer) in batch.iter().zip(answers) {
                let _ = request.reply.send(answer); // the caller may have stopped waiting
            }
        }
    }

    /// Takes up what waits; where there were several callers, waits a moment for them to come back.
    fn gather(&self, waiting: &mut VecDeque<Request>, callers: usize) {
        waiting.extend(self.incoming.try_iter());
        let deadline = Instant::now().checked_add(self.options.max_wait);
        while waiting.len() < callers {
            let received = match deadline {
                Some(deadline) => self.incoming.recv_deadline(deadline).ok(),
                None => self.incoming.recv().ok(),
            };
            let Some(request) = received else { return };
            waiting.push_back(request);
        }
    }

    /// The requests of the next call, in the order in which they came.
    fn take(&self, waiting: &mut VecDeque<Request>) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut states = 0;
        while let Some(request) = waiting.pop_front() {
            states += request.states.len();
            if !batch.is_empty() && states > self.options.max_states {
                waiting.push_front(request);
                break;
            }
            batch.push(request);
        }
        batch
    }

    /// One answer for each request.
    fn answers(&self, batch: &[Request]) -> Vec<Answer> {
        let replies: Arc<[_]> = batch.iter().map(|request| request.reply.clone()).collect();
        let states: Vec<&str> =
            batch.iter().flat_map(|request| &request.states).map(|state| &**state).collect();
        match self.call(&states, &replies) {
            Ok(proposals) => {
                let mut proposals = proposals.into_iter();
                let own =
                    |request: &Request| Ok(proposals.by_ref().take(request.states.len()).collect());
                batch.iter().map(own).collect()
            }
            Err(error) if states.len() == 1 || matches!(error, EmbedError::Closed) => {
                batch.iter().map(|_| Err(error.clone())).collect()
            }
            Err(error) => {
                tracing::warn!(%error, states = states.len(), "the policy is asked state by state");
                self.one_by_one(batch, &replies)
            }
        }
    }

    /// The answers where a call failed: a state on which the policy fails has no candidates, unless it
    /// fails on all.
    fn one_by_one(&self, batch: &[Request], replies: &Arc<[Sender<Answer>]>) -> Vec<Answer> {
        let ask = |state: &Arc<str>| {
            let found = self.call(&[state], replies)?;
            found.into_iter().next().ok_or_else(|| unexpected("no proposal for a state"))
        };
        let found: Vec<Vec<Result<Proposal, EmbedError>>> =
            batch.iter().map(|request| request.states.iter().map(ask).collect()).collect();
        let works = found.iter().flatten().any(Result::is_ok);
        let answer = |own: Vec<Result<Proposal, EmbedError>>| {
            let settled = own.into_iter().map(|proposal| match proposal {
                Err(error) if works => Ok(Err(NoCandidates(error.to_string()))),
                other => other,
            });
            settled.collect()
        };
        found.into_iter().map(answer).collect()
    }

    /// One proposal for each state.
    fn call(
        &self,
        states: &[&str],
        replies: &Arc<[Sender<Answer>]>,
    ) -> Result<Vec<Proposal>, EmbedError> {
        let found: Option<Vec<Tactics>> = attach(|py| {
            let abandoned = self.abandoned(py, replies)?;
            let states_in_python = PyList::new(py, states)?;
            let options = self.options.call_arguments(py)?;
            let arguments = (&self.policy, states_in_python, abandoned, options);
            py.import("ebm_encode.bridge")?.call_method1("propose", arguments)?.extract()
        })?;
        let found = found.ok_or(EmbedError::Closed)?;
        if found.len() != states.len() {
            let message = format!("{} proposals for {} states", found.len(), states.len());
            return Err(EmbedError::Unexpected(message));
        }
        found.into_iter().map(proposal).collect()
    }

    /// A Python function that says whether nobody waits for these answers any more.
    fn abandoned<'py>(
        &self,
        py: Python<'py>,
        replies: &Arc<[Sender<Answer>]>,
    ) -> PyResult<Bound<'py, PyCFunction>> {
        let (closed, replies) = (Arc::clone(&self.closed), Arc::clone(replies));
        let ask = move |_: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<bool> {
            Ok(closed.load(Ordering::Acquire) || replies.iter().all(Sender::is_disconnected))
        };
        PyCFunction::new_closure(py, Some(c"abandoned"), None, ask)
    }
}

fn proposal((tactics, reason): Tactics) -> Result<Proposal, EmbedError> {
    if let Some(reason) = reason {
        return Ok(Err(NoCandidates(reason)));
    }
    if let Some((tactic, log_prob)) = tactics.iter().find(|(_, p)| !(p.is_finite() && *p <= 0.0)) {
        return Err(unexpected(&format!("log-probability {log_prob} of tactic {tactic:?}")));
    }
    Ok(Ok(tactics.into_iter().map(|(text, log_prob)| Candidate::new(text, log_prob)).collect()))
}

fn unexpected(what: &str) -> EmbedError {
    EmbedError::Unexpected(what.to_owned())
}
