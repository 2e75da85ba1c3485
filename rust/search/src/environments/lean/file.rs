//! A file for one Lean process, and how its process is followed.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use super::child::{MOST_LINE, Next, Process};
use super::launch::Lean;
use super::messages::{Message, Position};
use crate::search::Control;
use crate::shown::one_line;

/// A command whose answer shows how far Lean has come.
const MARK: &str = "#check Prop";

/// Options of every run. Lean stops after 100 errors without a word, and a file has hundreds; a name that a
/// statement does not bind is an error, not a variable; nothing here reads what linters say. Parts are read
/// one after the other; with fewer than two threads Lean reports nothing while it works on a part.
const ARGUMENTS: &[&str] =
    &["--json", "-j2", "-DmaxErrors=1000000", "-DautoImplicit=false", "-Dlinter.all=false"];

/// Bytes of messages of one part that are kept. No state is that long; a tactic that prints for ever is.
const MOST_BYTES: usize = 1 << 26;

/// The start of a term that Lean refuses whatever comes in the brackets behind it, with a message about the
/// place of the whole term. The first makes Lean refuse it without a look into the brackets.
pub(super) const REFUSED: [&str; 2] = ["Prop (", "fun (_ : Prop) => show Prop from ("];

/// Where a piece of the file must start and end, as Lean reads it.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    from: Position,
    to: Position,
}

/// One part of a file.
#[derive(Debug)]
struct Part {
    /// The line of the mark behind it.
    mark: usize,
    bounds: Option<Bounds>,
    stop: Stop,
}

/// When Lean is stopped behind a part: what comes then may mean something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Never,
    /// If the part ends before its place.
    Early,
    /// If the part ends before its place, or Lean does not understand it.
    Fault,
}

/// The text of a file: a header, and parts that are told apart by marks.
#[derive(Debug)]
pub(super) struct File {
    text: String,
    lines: usize,
    /// The header, and the parts behind it.
    parts: Vec<Part>,
    /// The bounds of the part that is being written.
    bounds: Option<Bounds>,
}

impl File {
    pub(super) fn new(header: &str) -> Self {
        let mut file = Self { text: String::new(), lines: 0, parts: Vec::new(), bounds: None };
        file.push(header);
        file.mark(Stop::Never);
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

    /// Starts a part with the question where Lean thinks that a text in brackets ends.
    ///
    /// The text stands in a term that Lean must refuse. Its message says where the term ends, and comes before
    /// anything of the text is run: a text that ends the term and starts a command cannot change it.
    pub(super) fn ask_bounds(&mut self, refused: &str, brackets: [&str; 2], text: &str) {
        self.push("example : Prop");
        let from = self.push(&format!(":= {refused}{}", brackets[0]));
        self.push(text);
        let close = format!("{})", brackets[1]);
        let to = self.push(&close);
        self.bounds = Some(Bounds {
            from: Position { line: from, column: 3 },
            to: Position { line: to, column: close.len() },
        });
    }

    /// Ends a part.
    pub(super) fn mark(&mut self, stop: Stop) {
        let mark = self.push(MARK);
        self.parts.push(Part { mark, bounds: self.bounds.take(), stop });
    }

    /// How many marks Lean skipped before the one that this message answers; `None` if it answers none. An
    /// error in the line of a mark is about the part before it, which Lean expected to go on.
    fn marked(&self, passed: usize, message: &Message) -> Option<usize> {
        let answers = message.severity == "information" && message.data.starts_with("Prop");
        let mark = self.parts[passed..].iter().position(|part| part.mark == message.pos.line);
        mark.filter(|_| answers)
    }
}

/// Why a part does not end where it should.
#[derive(Debug)]
enum Fault {
    /// Lean does not understand it, and goes on with the next command behind that place.
    Wrong(String),
    /// Lean understands it as more than it should be.
    Early,
}

impl Bounds {
    /// Takes Lean's answer out of the messages of a part.
    fn take(self, messages: &mut Vec<Message>) -> Option<Fault> {
        let fault = match messages.first() {
            Some(first) if first.is_error() && first.pos == self.from => {
                (first.end != Some(self.to)).then_some(Fault::Early)
            }
            Some(first) if first.is_error() => Some(Fault::Wrong(first.reason())),
            _ => Some(Fault::Early),
        };
        messages.retain(|message| message.pos.line > self.to.line);
        fault
    }
}

impl Fault {
    fn reason(self) -> String {
        match self {
            Self::Wrong(said) => said,
            Self::Early => "it ends its place in the file and starts another command".to_owned(),
        }
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
    /// The last part may have changed what the parts behind it mean, and Lean was killed.
    Unbound,
    /// Nobody waits for the answers any more, and Lean was killed.
    Stopped,
}

/// What Lean said of a file.
#[derive(Debug)]
pub(super) struct Ran {
    /// The messages of the header.
    pub(super) header: Vec<Message>,
    /// What Lean said of each part that it came to the end of.
    pub(super) parts: Vec<Said>,
    /// The messages of a part that Lean did not come to the end of.
    pub(super) unfinished: Vec<Message>,
    /// Whether the header was read to its end.
    pub(super) started: bool,
    pub(super) end: End,
}

impl Ran {
    /// A run for which nobody waited.
    pub(super) fn stopped() -> Self {
        Self { end: End::Stopped, ..Self::new() }
    }

    fn new() -> Self {
        Self {
            header: Vec::new(),
            parts: Vec::new(),
            unfinished: Vec::new(),
            started: false,
            end: End::Complete,
        }
    }

    /// Takes the messages of parts that Lean came to the end of. A mark that Lean skipped was taken for a
    /// piece of the part before it.
    fn take(&mut self, parts: &[Part], since: &mut Vec<Message>) -> Option<End> {
        for part in parts {
            let messages;
            (messages, *since) = std::mem::take(since)
                .into_iter()
                .partition(|message| message.pos.line <= part.mark);
            if !self.started {
                self.started = true;
                self.header = messages;
                continue;
            }
            let mut said = Said { fault: None, messages };
            let fault = part.bounds.and_then(|bounds| bounds.take(&mut said.messages));
            let stops = match &fault {
                None => false,
                Some(Fault::Early) => part.stop != Stop::Never,
                Some(Fault::Wrong(_)) => part.stop == Stop::Fault,
            };
            said.fault = fault.map(Fault::reason);
            self.parts.push(said);
            if stops {
                return Some(End::Unbound);
            }
        }
        None
    }

    /// Keeps the messages behind the last mark: they are no errors of the header once that was read.
    fn leave(&mut self, since: Vec<Message>) {
        if self.started {
            self.unfinished = since;
        } else {
            self.header = since;
        }
    }
}

/// What Lean said of a part.
#[derive(Debug)]
pub(super) struct Said {
    /// Why the part does not end where it should.
    pub(super) fault: Option<String>,
    pub(super) messages: Vec<Message>,
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
    let mut ran = Ran::new();
    let mut passed = 0;
    let mut since: Vec<Message> = Vec::new();
    let mut bytes = 0;
    let mut progress = Instant::now();
    while passed < file.parts.len() {
        let limit = if ran.started { limits.part } else { limits.startup };
        let ended = if stop() {
            Some(End::Stopped)
        } else if progress.elapsed() > limit {
            Some(End::Hung)
        } else {
            match process.next(Control::TICK.min(limit)) {
                Next::Line(line) => {
                    bytes += line.len();
                    let message = Message::parse(&line);
                    let skipped = message.as_ref().and_then(|message| file.marked(passed, message));
                    if let Some(skipped) = skipped {
                        (progress, bytes) = (Instant::now(), 0);
                        let parts = &file.parts[passed..=passed + skipped];
                        passed += skipped + 1;
                        ran.take(parts, &mut since)
                    } else {
                        since.extend(message);
                        (bytes > MOST_BYTES)
                            .then(|| End::Died(format!("Lean wrote more than {MOST_BYTES} bytes")))
                    }
                }
                Next::TooLong => {
                    Some(End::Died(format!("Lean wrote a line of more than {MOST_LINE} bytes")))
                }
                Next::Silence => None,
                Next::End => {
                    ran.leave(since);
                    ran.end = End::Died(last_words(process)?);
                    return Ok(ran);
                }
            }
        };
        if let Some(end) = ended {
            ran.leave(since);
            ran.end = end;
            return Ok(ran);
        }
    }
    Ok(ran)
}

/// How a process ended that should go on.
fn last_words(process: Process) -> io::Result<String> {
    let (status, stderr) = process.finish()?;
    let mut said = format!("Lean ended early ({status})");
    if let Some(last) = stderr.lines().rev().find(|line| !line.trim().is_empty()) {
        let _ = write!(said, ": {}", one_line(last));
    }
    Ok(said)
}
