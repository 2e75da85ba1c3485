//! Threads that run the tactics of all sessions, many in one Lean process.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::NAME;
use super::file::{End, File, Limits, REFUSED, Ran, Said, Stop, run};
use super::guard::{indented, names_commands};
use super::launch::Lean;
use super::messages::{Answer, read_block};
use super::options::LeanOptions;
use crate::search::{Cancel, Control, EnvironmentError, EnvironmentResult};
use crate::shown::one_line;

/// A statement, and tactics from its root.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// What stands behind `example`.
    pub(super) signature: Arc<str>,
    pub(super) tactics: Vec<Arc<str>>,
    /// The statement as a type, if it is that which Lean must read as one piece, and not the tactics.
    pub(super) statement: Option<String>,
}

impl Block {
    /// Its lines in a file; the line of its `by`, where goals that are left are reported.
    fn write(&self, file: &mut File, refused: &str) -> usize {
        let tactics = block(&self.tactics);
        let (brackets, text) = match &self.statement {
            Some(statement) => (STATEMENT, statement),
            None => (TACTICS, &tactics),
        };
        file.ask_bounds(refused, brackets, text);
        // Behind an error Lean goes on with the next command that it finds, wherever that is.
        let stop = if names_commands(text) { Stop::Fault } else { Stop::Early };
        file.push(&format!("example {}", self.signature));
        let by = file.push(&format!(":= ({}", TACTICS[0]));
        file.push(&tactics);
        file.push(")");
        file.mark(stop);
        by
    }
}

/// What stands around a statement in the brackets of [`File::ask_bounds`], and around tactics.
pub(super) const STATEMENT: [&str; 2] = ["(", ")"];
pub(super) const TACTICS: [&str; 2] = ["by", ""];

/// The lines of a block of tactics.
pub(super) fn block(tactics: &[Arc<str>]) -> String {
    tactics.iter().map(|tactic| indented(tactic)).collect()
}

type Reply = EnvironmentResult<Vec<Answer>>;

struct Request {
    blocks: Vec<Block>,
    control: Control,
    reply: flume::Sender<Reply>,
}

/// What all workers share.
pub(super) struct Shared {
    pub(super) lean: Lean,
    pub(super) options: LeanOptions,
    /// How this Lean is asked where a text ends: one of [`REFUSED`].
    pub(super) refused: &'static str,
    /// Axioms of Lean that a proof may use, where they say what they should.
    pub(super) axioms: Vec<&'static str>,
    closing: Cancel,
    /// One for each Lean process that may run.
    permits: (flume::Sender<()>, flume::Receiver<()>),
}

impl Shared {
    pub(super) fn new(lean: Lean, options: LeanOptions) -> Self {
        let workers = options.workers.get();
        let permits = flume::bounded(workers);
        for _ in 0..workers {
            let _ = permits.0.send(());
        }
        let closing = Cancel::default();
        Self { lean, options, refused: REFUSED[0], axioms: Vec::new(), closing, permits }
    }

    /// Runs a file as soon as a process may be started: workers and checks of proofs share the number.
    pub(super) fn run(
        &self,
        file: &File,
        limits: &Limits,
        stop: &dyn Fn() -> bool,
    ) -> EnvironmentResult<Ran> {
        while self.permits.1.recv_timeout(Control::TICK).is_err() {
            if stop() {
                return Ok(Ran::stopped());
            }
        }
        let _permit = Permit(&self.permits.0);
        run(&self.lean, file, limits, stop)
            .map_err(|error| failed(format!("Lean cannot be run: {error}")))
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { startup: self.options.startup_limit, part: self.options.tactic_limit }
    }

    /// Whether nobody waits: the environment is dropped, or all searches that asked have stopped.
    pub(super) fn stopped<'a>(&self, mut controls: impl Iterator<Item = &'a Control>) -> bool {
        self.closing.is_cancelled() || controls.all(|control| control.check().is_err())
    }
}

/// Gives back what a process was started with.
struct Permit<'a>(&'a flume::Sender<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// The threads. They end when this is dropped, and their Lean processes with them.
pub(super) struct Workers {
    pub(super) shared: Arc<Shared>,
    requests: Option<flume::Sender<Request>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) fn start(shared: Shared) -> io::Result<Self> {
        let shared = Arc::new(shared);
        let (sender, receiver) = flume::unbounded();
        let mut workers = Self { shared, requests: Some(sender), threads: Vec::new() };
        for _ in 0..workers.shared.options.workers.get() {
            let (shared, requests) = (Arc::clone(&workers.shared), receiver.clone());
            let thread = std::thread::Builder::new()
                .name("lean".to_owned())
                .spawn(move || serve(&shared, &requests))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// The answers to these blocks, in their order, as soon as a worker has them.
    pub(super) fn ask(&self, blocks: Vec<Block>, control: &Control) -> Reply {
        control.check()?;
        let (reply, answers) = flume::bounded(1);
        let request = Request { blocks, control: control.clone(), reply };
        let gone = || failed("its workers have ended");
        self.requests.as_ref().and_then(|requests| requests.send(request).ok()).ok_or_else(gone)?;
        loop {
            match answers.recv_timeout(control.wait(Control::TICK)) {
                Ok(reply) => return reply,
                Err(flume::RecvTimeoutError::Timeout) => control.check()?,
                Err(flume::RecvTimeoutError::Disconnected) => {
                    // A worker may have seen first that this search has stopped.
                    control.check()?;
                    return Err(gone());
                }
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.closing.cancel();
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(super) fn failed(reason: impl Into<String>) -> EnvironmentError {
    EnvironmentError::Failed { environment: NAME, reason: reason.into() }
}

/// One worker: takes its share of what waits, and runs it in one file.
fn serve(shared: &Shared, requests: &flume::Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let share = (requests.len() + 1).div_ceil(shared.options.workers.get());
        let mut taken = vec![first];
        let mut blocks = taken[0].blocks.len();
        while taken.len() < share && blocks < shared.options.tactics_per_file.get() {
            let Ok(request) = requests.try_recv() else { break };
            blocks += request.blocks.len();
            taken.push(request);
        }
        let stop = || shared.stopped(taken.iter().map(|request| &request.control));
        let blocks: Vec<&Block> = taken.iter().flat_map(|request| &request.blocks).collect();
        let answers = run_blocks(shared, &blocks, &stop);
        reply(taken, answers);
    }
}

/// Gives each request its part of the answers. A search that has stopped does not take it.
fn reply(requests: Vec<Request>, answers: EnvironmentResult<Option<Vec<Answer>>>) {
    match answers {
        Ok(None) => {}
        Ok(Some(answers)) => {
            let mut answers = answers.into_iter();
            for request in requests {
                let own = answers.by_ref().take(request.blocks.len()).collect();
                let _ = request.reply.send(Ok(own));
            }
        }
        Err(error) => {
            let reason = match error {
                EnvironmentError::Failed { reason, .. } => reason,
                other => other.to_string(),
            };
            for request in requests {
                let _ = request.reply.send(Err(failed(reason.clone())));
            }
        }
    }
}

/// Runs blocks until each has an answer; `None` if nobody waits for them any more.
///
/// A block that Lean hangs on or dies of is the first without an answer. What is behind it is run in another
/// file. One that Lean died of is run again without others, because the cause may be outside.
pub(super) fn run_blocks(
    shared: &Shared,
    blocks: &[&Block],
    stop: &dyn Fn() -> bool,
) -> EnvironmentResult<Option<Vec<Answer>>> {
    let most = shared.options.tactics_per_file.get();
    let mut answers: Vec<Option<Answer>> = vec![None; blocks.len()];
    let all: Vec<usize> = (0..blocks.len()).collect();
    let mut files: VecDeque<Vec<usize>> = all.chunks(most).map(<[usize]>::to_vec).collect();
    let mut died = vec![0_u8; blocks.len()];
    let mut failures = 0_u8;
    while let Some(mut file) = files.pop_front() {
        let chosen: Vec<&Block> = file.iter().map(|&index| blocks[index]).collect();
        let (ran, read) = run_file(shared, &chosen, stop)?;
        let done = read.len();
        for (&index, answer) in file.iter().zip(read) {
            answers[index] = Some(answer);
        }
        let reason = match ran.end {
            End::Stopped => return Ok(None),
            End::Complete => continue,
            End::Unbound => {
                let behind = file.split_off(done);
                if !behind.is_empty() {
                    files.push_front(behind);
                }
                continue;
            }
            End::Hung => format!("no answer within {:?}", shared.options.tactic_limit),
            End::Died(said) => said,
        };
        if !ran.started {
            failures += 1;
            if failures > 1 {
                return Err(failed(format!("Lean does not start any more: {reason}")));
            }
            files.push_front(file);
            continue;
        }
        let behind = file.split_off(done + 1);
        let suspect = file[done];
        if !behind.is_empty() {
            files.push_front(behind);
        }
        died[suspect] += 1;
        if reason.starts_with("no answer") || died[suspect] > 1 {
            answers[suspect] = Some(Answer::Refused(reason));
        } else {
            files.push_back(vec![suspect]);
        }
    }
    let answers: Option<Vec<Answer>> = answers.into_iter().collect();
    answers.map(Some).ok_or_else(|| failed("Lean did not answer for each tactic"))
}

/// Runs one file; the answers as far as Lean came.
fn run_file(
    shared: &Shared,
    blocks: &[&Block],
    stop: &dyn Fn() -> bool,
) -> EnvironmentResult<(Ran, Vec<Answer>)> {
    let mut file = File::new(&shared.lean.header);
    let by: Vec<usize> =
        blocks.iter().map(|block| block.write(&mut file, shared.refused)).collect();
    let ran = shared.run(&file, &shared.limits(), stop)?;
    if let Some(error) = ran.header.iter().find(|message| message.is_error()) {
        return Err(failed(format!("the header has an error: {}", one_line(&error.data))));
    }
    let read = |(said, by): (&Said, usize)| match &said.fault {
        Some(fault) => Answer::Refused(fault.clone()),
        None => read_block(&said.messages, by),
    };
    let answers = ran.parts.iter().zip(by).map(read).collect();
    Ok((ran, answers))
}
