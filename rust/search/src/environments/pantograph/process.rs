//! A child process in a group of its own, with a thread for each of its pipes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flume::{Receiver, RecvTimeoutError, Sender};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::fault::{CallError, Fault};
use super::options::PantographOptions;
use crate::environments::watch::{forget, watch};
use crate::search::Control;
use crate::shown::one_line;

/// Bytes of stderr that are kept for messages.
const KEPT_ERRORS: usize = 4096;

/// How long a process that closed its output may take to end by itself, and its last words to arrive.
const LAST_MOMENTS: Duration = Duration::from_millis(200);

enum Output {
    Line(Vec<u8>),
    TooLong,
    /// The end, inside a line where `torn`.
    End {
        torn: bool,
    },
}

/// A running process. Dropping it ends its whole group and waits for its end.
pub(super) struct Process {
    child: Child,
    /// `None` once it was ended.
    group: Option<Pid>,
    input: Sender<Vec<u8>>,
    output: Receiver<Output>,
    errors: Arc<Mutex<Vec<u8>>>,
    answer_bytes: usize,
}

impl Process {
    pub(super) fn spawn(options: &PantographOptions) -> io::Result<Self> {
        let mut command = Command::new(&options.program);
        command.args(&options.arguments).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = &options.working_folder {
            command.current_dir(folder);
        }
        let mut child = command.spawn()?;
        let group = Some(Pid::from_child(&child));
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (input, requests) = flume::unbounded();
        // A process that floods its output waits for us, and not in our memory.
        let (lines, output) = flume::bounded(1);
        let errors = Arc::default();
        let answer_bytes = options.answer_bytes;
        let process = Self { child, group, input, output, errors, answer_bytes };
        // From here on an error drops `process`, which ends the child.
        if let Some(group) = process.group {
            watch(group)?;
        }
        if let (Some(stdin), Some(stdout), Some(stderr)) = pipes {
            let errors = Arc::clone(&process.errors);
            run("pantograph stdin", move || write_requests(stdin, &requests))?;
            run("pantograph stdout", move || read_lines(stdout, answer_bytes, &lines))?;
            run("pantograph stderr", move || keep_tail(stderr, &errors))?;
        }
        Ok(process)
    }

    /// Sends bytes. That they could not be written shows at the next [`Process::line`].
    pub(super) fn send(&self, bytes: Vec<u8>) {
        drop(self.input.send(bytes));
    }

    /// The next line of its output.
    pub(super) fn line(&mut self, until: Instant, control: &Control) -> Result<Vec<u8>, LineError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(control.wait(left)) {
                Ok(Output::Line(line)) => return Ok(line),
                Ok(Output::TooLong) => {
                    return Err(LineError::Call(Fault::TooLong(self.answer_bytes).into()));
                }
                Ok(Output::End { torn }) => return Err(LineError::Call(self.died(torn).into())),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(LineError::Call(self.died(false).into()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    control.check().map_err(|stop| LineError::Call(stop.into()))?;
                    if left.is_zero() {
                        return Err(LineError::Late);
                    }
                }
            }
        }
    }

    /// A line that is there already.
    pub(super) fn unasked(&self) -> Option<Vec<u8>> {
        match self.output.try_recv() {
            Ok(Output::Line(line)) => Some(line),
            _ => None,
        }
    }

    /// The end of what it wrote to stderr, as the end of a message.
    pub(super) fn errors(&self) -> String {
        let kept = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        match one_line(&String::from_utf8_lossy(&kept)).as_str() {
            "" => String::new(),
            text => format!("; the end of its stderr: {text}"),
        }
    }

    fn died(&mut self, torn: bool) -> Fault {
        // It must stay a zombie until its group was ended, or the group's number could be another's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let running = |pid| matches!(waitid(WaitId::Pid(pid), options), Ok(None));
        let ended = soon(|| !self.group.is_some_and(running));
        let how = match self.end() {
            Some(status) if ended => format!("ended ({status})"),
            _ => "closed its output".to_owned(),
        };
        // The thread that reads stderr holds the other one.
        soon(|| Arc::strong_count(&self.errors) == 1);
        let how = if torn { format!("{how} in the middle of a line") } else { how };
        Fault::Died { how, errors: self.errors() }
    }

    fn end(&mut self) -> Option<ExitStatus> {
        // Once it was waited for, the number may be that of another group.
        if let Some(group) = self.group.take() {
            // An error says that nothing is left of the group.
            let _ = kill_process_group(group, Signal::KILL);
            forget(group);
        }
        self.child.wait().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether something happens within moments.
fn soon(happened: impl Fn() -> bool) -> bool {
    let end = Instant::now() + LAST_MOMENTS;
    while !happened() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Why there is no line.
pub(super) enum LineError {
    /// The time is over.
    Late,
    Call(CallError),
}

fn run(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Its own thread, since a process that reads nothing would block whoever writes.
fn write_requests(mut stdin: ChildStdin, requests: &Receiver<Vec<u8>>) {
    for request in requests {
        if stdin.write_all(&request).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

fn read_lines(stdout: ChildStdout, most: usize, lines: &Sender<Output>) {
    let mut reader = BufReader::with_capacity(1 << 16, stdout);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        let output = match (read, line.last()) {
            (Ok(_), Some(b'\n')) => Output::Line(line),
            (Ok(_), _) if line.len() > most => Output::TooLong,
            _ => Output::End { torn: !line.is_empty() },
        };
        let last = !matches!(output, Output::Line(_));
        if lines.send(output).is_err() || last {
            return;
        }
    }
}

/// Reads to the end, whatever comes: a full pipe would block the process.
fn keep_tail(mut stderr: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1 << 14];
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..length]);
                let surplus = kept.len().saturating_sub(KEPT_ERRORS);
                kept.drain(..surplus);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
