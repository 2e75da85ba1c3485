//! The switches: how the stand-in fails.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are switches")]
pub(crate) struct Switches {
    pub(crate) tree: PathBuf,
    /// `--ready-after MILLISECONDS`
    pub(crate) ready_after: Duration,
    /// `--noise-before-ready LINES`: on stdout.
    pub(crate) noise_before_ready: usize,
    /// `--import-error`: instead of `ready.`
    pub(crate) import_error: bool,
    /// `--stderr BYTES`: at the start and at each request.
    pub(crate) stderr: usize,
    /// `--stays-manual`: automatic mode cannot be set.
    pub(crate) stays_manual: bool,
    /// `--lies-automatic`: it cannot, but `options.print` says that it was.
    pub(crate) lies_automatic: bool,
    /// `--no-root-flags`: `goal.print` does not say what the root's term holds.
    pub(crate) no_root_flags: bool,
    /// `--silent-file`: `frontend.process` gives commands without messages.
    pub(crate) silent_file: bool,
    /// `--at TACTIC-OR-COMMAND FAULT`, any number of them. See [`Fault`].
    pub(crate) at: HashMap<String, Fault>,
    /// `--once FILE`: each fault of `--at` happens if this file does not exist, which it makes.
    pub(crate) once: Option<PathBuf>,
    /// `--log FILE`: appends `PID REQUEST` for each request.
    log: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// `die`: by a signal, as a panic of Lean does.
    Die,
    /// `die-torn`: with status 7, half of the answer written.
    DieTorn,
    /// `end`: with status 0, without an answer.
    End,
    /// `hang`
    Hang,
    /// `garbage`: a line that is no JSON.
    Garbage,
    /// `extra`: the answer, and a line that nobody asked for.
    Extra,
    /// `forget`: all states, as after a restart behind our back.
    Forget,
    /// `nulls`: an answer whose fields are all null.
    Nulls,
    /// `absent`: a new state without its goals.
    Absent,
    /// `interrupt`: the tactic never ends, so that its time limit does.
    Interrupt,
    /// `long=BYTES`: the answer with so many bytes more.
    Long(usize),
    /// `shape`: goals that are no list.
    Shape,
    /// `core`: the answer of an exception in Lean.
    Core,
}

impl Switches {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let tree = words.next().ok_or("usage: pantograph_stand_in TREE.json [SWITCH ...]")?;
        let mut switches = Self { tree: tree.into(), ..Self::default() };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} lacks its value"));
            match &*word {
                "--ready-after" => switches.ready_after = Duration::from_millis(number(&value()?)?),
                "--noise-before-ready" => switches.noise_before_ready = number(&value()?)?,
                "--import-error" => switches.import_error = true,
                "--stderr" => switches.stderr = number(&value()?)?,
                "--stays-manual" => switches.stays_manual = true,
                "--lies-automatic" => switches.lies_automatic = true,
                "--no-root-flags" => switches.no_root_flags = true,
                "--silent-file" => switches.silent_file = true,
                "--at" => {
                    let place = value()?;
                    switches.at.insert(place, Fault::parse(&value()?)?);
                }
                "--once" => switches.once = Some(value()?.into()),
                "--log" => switches.log = Some(value()?.into()),
                _ => return Err(format!("unknown switch {word}")),
            }
        }
        Ok(switches)
    }

    /// The fault at a tactic or command, if it happens now.
    pub(crate) fn fault(&self, place: &str) -> Option<Fault> {
        let fault = self.at.get(place).copied()?;
        let new = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path).is_ok();
        self.once.as_deref().is_none_or(new).then_some(fault)
    }

    /// Writes to stderr, which blocks if nobody reads it.
    pub(crate) fn flood(&self) {
        let line = b"PANIC at Lean.Meta.something: unreachable code has been reached\n";
        let bytes: Vec<u8> = line.iter().copied().cycle().take(self.stderr).collect();
        let _ = io::stderr().write_all(&bytes);
    }

    pub(crate) fn log(&self, request: &str) -> io::Result<()> {
        let Some(path) = &self.log else { return Ok(()) };
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        // One write, so that lines of several processes stay whole.
        file.write_all(format!("{} {request}\n", std::process::id()).as_bytes())
    }
}

impl Fault {
    fn parse(word: &str) -> Result<Self, String> {
        if let Some(bytes) = word.strip_prefix("long=") {
            return Ok(Self::Long(number(bytes)?));
        }
        Ok(match word {
            "die" => Self::Die,
            "die-torn" => Self::DieTorn,
            "end" => Self::End,
            "hang" => Self::Hang,
            "garbage" => Self::Garbage,
            "extra" => Self::Extra,
            "forget" => Self::Forget,
            "nulls" => Self::Nulls,
            "absent" => Self::Absent,
            "interrupt" => Self::Interrupt,
            "shape" => Self::Shape,
            "core" => Self::Core,
            _ => return Err(format!("unknown fault {word}")),
        })
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}
