//! A file for one Lean process, and how its process is followed.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use super::child::{Next, Process};
use super::launch::Lean;
use super::messages::Message;
use crate::search::Control;

/// A command whose answer shows how far Lean has come.
const MARK: &str = "#check Prop";

/// Options of every run. Lean stops after 100 errors without a word, and a file has hundreds; a name that a
/// statement does not bind is an error, not a variable; nothing here reads what linters say. Parts are read
/// one after the other; with fewer than two threads Lean reports nothing while it works on a part.
const ARGUMENTS: &[&str] =
    &["--json", "-j2", "-DmaxErrors=1000000", "-DautoImplicit=false", "-Dlinter.all=false"];

/// The text of a file: a header, and parts that are told apart by marks.
#[derive(Debug)]
pub(super) struct File {
    text: String,
    lines: usize,
    /// The lines of the marks: behind the header, and behind each part.
    marks: Vec<usize>,
}

impl File {
    pub(super) fn new(header: &str) -> Self {
        let mut file = Self { text: String::new(), lines: 0, marks: Vec::new() };
        file.push(header);
        file.mark();
        file
    }

    /// Adds text as lines; the number of the first of them.
    pub(super) fn push(&mut self, text: &str) -> usize {
        let first = self.lines + 1;
        self.text.push_str(text);
        if !text.ends_with('\n') {
            self.text.push('\n');
        }
        self.lines = first - 1 + text.lines().count().max(1);
        first
    }

    /// Ends a part.
    pub(super) fn mark(&mut self) {
        let line = self.push(MARK);
        self.marks.push(line);
    }

    /// How many marks Lean skipped before the one that this message answers; `None` if it answers none. An
    /// error in the line of a mark is about the part before it, which Lean expected to go on.
    fn marked(&self, passed: usize, message: &Message) -> Option<usize> {
        let answers = message.severity == "information" && message.data.starts_with("Prop");
        let mark = self.marks[passed..].iter().position(|&mark| mark == message.pos.line);
        mark.filter(|_| answers)
    }
}

/// How the run of a file ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Lean came to the end of the file.
    Complete,
    /// Lean took longer for a part than it may, and was killed.
    Hung,
    /// Lean ended before the end of the file.
    Died(String),
    /// Nobody waits for the answers any more, and Lean was killed.
    Stopped,
}

/// What Lean said of a file.
#[derive(Debug)]
pub(super) struct Ran {
    /// The messages of the header.
    pub(super) header: Vec<Message>,
    /// The messages of each part that Lean came to the end of.
    pub(super) parts: Vec<Vec<Message>>,
    /// Whether the header was read to its end.
    pub(super) started: bool,
    pub(super) end: End,
}

/// The limits of a run.
pub(super) struct Limits {
    /// Until the header is read.
    pub(super) startup: Duration,
    /// For each part.
    pub(super) part: Duration,
}

/// Runs Lean over a file until it ends, is too slow, or `stop` says that nobody waits.
pub(super) fn run(
    lean: &Lean,
    file: &File,
    limits: &Limits,
    stop: &dyn Fn() -> bool,
) -> io::Result<Ran> {
    let mut path = tempfile::Builder::new().suffix(".lean").tempfile_in(lean.work.path())?;
    io::Write::write_all(&mut path, file.text.as_bytes())?;
    let arguments = ARGUMENTS.iter().map(Into::into).chain([path.path().as_os_str().to_owned()]);
    let process = Process::start(&mut lean.run(arguments))?;
    let mut ran = Ran { header: Vec::new(), parts: Vec::new(), started: false, end: End::Stopped };
    let mut passed = 0;
    let mut since: Vec<Message> = Vec::new();
    let mut progress = Instant::now();
    while passed < file.marks.len() {
        if stop() {
            return Ok(ran);
        }
        let limit = if ran.started { limits.part } else { limits.startup };
        if progress.elapsed() > limit {
            ran.end = End::Hung;
            return Ok(ran);
        }
        match process.next(Control::TICK.min(limit)) {
            Next::Line(line) => {
                let Some(message) = Message::parse(&line) else { continue };
                let Some(skipped) = file.marked(passed, &message) else {
                    since.push(message);
                    continue;
                };
                progress = Instant::now();
                // A mark that Lean skipped was taken for a piece of the part before it.
                for &mark in &file.marks[passed..=passed + skipped] {
                    let part;
                    (part, since) = since.into_iter().partition(|message| message.pos.line <= mark);
                    if ran.started {
                        ran.parts.push(part);
                    } else {
                        ran.started = true;
                        ran.header = part;
                    }
                }
                passed += skipped + 1;
            }
            Next::Silence => {}
            Next::End => {
                ran.header.append(&mut since);
                let (status, stderr) = process.finish()?;
                let mut said = format!("Lean ended early ({status})");
                if let Some(last) = stderr.lines().rev().find(|line| !line.trim().is_empty()) {
                    let _ = write!(said, ": {}", last.trim());
                }
                ran.end = End::Died(said);
                return Ok(ran);
            }
        }
    }
    ran.end = End::Complete;
    Ok(ran)
}
