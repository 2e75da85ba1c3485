//! A child process with its group, read line by line.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::environments::watch::{forget, watch};

/// How much of what a process writes to stderr is kept: its end, where the cause is.
const KEPT_STDERR: usize = 4096;
/// How long a process may take to end after its output has.
const LINGER: Duration = Duration::from_secs(5);

/// Bytes of a line that are read. No message is that long.
pub(super) const MOST_LINE: usize = 1 << 24;
/// Lines that wait to be looked at. A process that floods its output waits for us, and not in our memory.
const MOST_LINES: usize = 64;

/// What came next from a process.
pub(super) enum Next {
    Line(String),
    /// A line of more than [`MOST_LINE`] bytes; no other is read.
    TooLong,
    /// Nothing yet.
    Silence,
    /// Its output has ended.
    End,
}

/// A process that is killed with all its children when this is dropped.
pub(super) struct Process {
    child: Child,
    lines: flume::Receiver<Option<String>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_reader: Option<JoinHandle<()>>,
    reaped: bool,
}

impl Process {
    /// Starts a command in a process group of its own, which is what is killed: `lake env lean` and a
    /// Python around Lean are more than one process.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdout.take(), child.stderr.take());
        let (sender, lines) = flume::bounded(MOST_LINES);
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut process =
            Self { child, lines, stderr: Arc::clone(&stderr), stderr_reader: None, reaped: false };
        // From here on an error drops `process`, which ends the child.
        if let Some(group) = process.pid() {
            watch(group)?;
        }
        // Both pipes are read all the time: a full one would stop Lean.
        if let Some(pipe) = pipes.0 {
            std::thread::spawn(move || read_lines(pipe, &sender));
        }
        if let Some(pipe) = pipes.1 {
            process.stderr_reader = Some(std::thread::spawn(move || read_end(pipe, &stderr)));
        }
        Ok(process)
    }

    /// The next line of its output, waited for as long as said.
    pub(super) fn next(&self, most: Duration) -> Next {
        match self.lines.recv_timeout(most) {
            Ok(Some(line)) => Next::Line(line),
            Ok(None) => Next::TooLong,
            Err(flume::RecvTimeoutError::Timeout) => Next::Silence,
            Err(flume::RecvTimeoutError::Disconnected) => Next::End,
        }
    }

    /// Its status and the end of its stderr, once its output has ended.
    pub(super) fn finish(mut self) -> io::Result<(ExitStatus, String)> {
        let until = Instant::now() + LINGER;
        while !self.has_ended() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.reap()?;
        // A process that left the group may keep the pipe open.
        while self.stderr_reader.as_ref().is_some_and(|reader| !reader.is_finished())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        let kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((status, String::from_utf8_lossy(&kept).trim().to_owned()))
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Whether it has ended. It stays a zombie, so its number is not given to another process.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = self.pid().map(|pid| waitid(WaitId::Pid(pid), options));
        !matches!(ended, Some(Ok(None)))
    }

    /// Kills what is left of its group, and only then lets the system have its number.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        if let Some(group) = self.pid() {
            // It fails where the group has ended, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
            forget(group);
        }
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

/// Sends each line; `None` for one that is too long, after which nothing is read.
fn read_lines(pipe: impl Read, sender: &flume::Sender<Option<String>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        let Ok(1..) = reader.by_ref().take(MOST_LINE as u64 + 1).read_until(b'\n', &mut line)
        else {
            return;
        };
        let fits = line.len() <= MOST_LINE;
        let text = fits.then(|| {
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            String::from_utf8_lossy(line).into_owned()
        });
        if sender.send(text).is_err() || !fits {
            return;
        }
    }
}

fn read_end(mut pipe: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(KEPT_STDERR);
        kept.drain(..surplus);
    }
}
