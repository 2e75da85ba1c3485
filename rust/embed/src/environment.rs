//! Which Python to start, and what it is, found out before it is in this process.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::error::EmbedError;
use crate::{PACKAGE_VERSION, PYTHON_VERSION};

/// Asks an interpreter about itself, without importing anything large.
const QUESTION: &str = r"
import importlib.metadata, importlib.util, json, platform, sys
def version(package, module):
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'unknown'
print('\n' + json.dumps({
    'executable': sys.executable,
    'implementation': platform.python_implementation(),
    'version': platform.python_version(),
    'prefix': sys.prefix,
    'packages': {
        'numpy': version('numpy', 'numpy'),
        'torch': version('torch', 'torch'),
        'transformers': version('transformers', 'transformers'),
        'ebm-encode': version('ebm-encode', 'ebm_encode'),
    },
}))
";

/// How an environment was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// It was given by the caller.
    Name,
    /// The variable `VIRTUAL_ENV` names it.
    VirtualEnv,
    /// Its `python3` is the first on `PATH`.
    Path,
}

impl fmt::Display for FoundBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "named",
            Self::VirtualEnv => "VIRTUAL_ENV",
            Self::Path => "first python3 on PATH",
        })
    }
}

/// Versions of the packages that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Packages {
    numpy: Option<String>,
    torch: Option<String>,
    transformers: Option<String>,
    #[serde(rename = "ebm-encode")]
    ebm_encode: Option<String>,
}

/// A Python interpreter with its packages: usually a virtual environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    found_by: FoundBy,
    answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Answer {
    executable: PathBuf,
    implementation: String,
    version: String,
    prefix: PathBuf,
    packages: Packages,
}

impl Environment {
    /// Finds the environment to use: the one given (its folder, or its interpreter), else that of
    /// `VIRTUAL_ENV`, else that of the first `python3` on `PATH`; and makes sure that it can be used.
    ///
    /// # Errors
    /// [`EmbedError::NoPython`], [`EmbedError::NotUsable`], [`EmbedError::WrongPython`],
    /// [`EmbedError::MissingPackage`] and [`EmbedError::WrongPackage`].
    pub fn find(named: Option<&Path>) -> Result<Self, EmbedError> {
        let (python, found_by) = locate(named, env::var_os("VIRTUAL_ENV").map(PathBuf::from))?;
        let answer = ask(&python)?;
        let environment = Self { found_by, answer };
        environment.require_usable()?;
        Ok(environment)
    }

    /// The interpreter.
    #[must_use]
    pub fn executable(&self) -> &Path {
        &self.answer.executable
    }

    /// How it was found.
    #[must_use]
    pub const fn found_by(&self) -> FoundBy {
        self.found_by
    }

    /// Version of Python, as `3.11.7`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.answer.version
    }

    /// The folder of the environment.
    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.answer.prefix
    }

    /// Names and versions of the packages that matter here.
    pub fn packages(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.answer.packages.iter().filter_map(|(name, version)| Some((name, version?)))
    }

    fn require_usable(&self) -> Result<(), EmbedError> {
        let Answer { executable, implementation, version, packages, .. } = &self.answer;
        let minor = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        if implementation != "CPython" || minor != PYTHON_VERSION {
            return Err(EmbedError::WrongPython {
                python: executable.clone(),
                implementation: implementation.clone(),
                found: version.clone(),
            });
        }
        if let Some((package, _)) = packages.iter().find(|(_, version)| version.is_none()) {
            return Err(EmbedError::MissingPackage { python: executable.clone(), package });
        }
        match packages.ebm_encode.as_deref() {
            Some(found) if found != PACKAGE_VERSION => Err(EmbedError::WrongPackage {
                python: executable.clone(),
                found: found.to_owned(),
                expected: PACKAGE_VERSION,
            }),
            _ => Ok(()),
        }
    }
}

impl Packages {
    /// `ebm-encode` first: where it is missing, installing it brings the others.
    fn iter(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        [
            ("ebm-encode", self.ebm_encode.as_deref()),
            ("numpy", self.numpy.as_deref()),
            ("torch", self.torch.as_deref()),
            ("transformers", self.transformers.as_deref()),
        ]
        .into_iter()
    }
}

fn locate(
    named: Option<&Path>,
    virtual_env: Option<PathBuf>,
) -> Result<(PathBuf, FoundBy), EmbedError> {
    if let Some(named) = named {
        let python = if named.is_dir() { interpreter_of(named) } else { named.to_owned() };
        return Ok((python, FoundBy::Name));
    }
    // An empty variable is as good as none.
    if let Some(folder) = virtual_env.filter(|folder| !folder.as_os_str().is_empty()) {
        return Ok((interpreter_of(&folder), FoundBy::VirtualEnv));
    }
    let python = which::which("python3").map_err(|error| EmbedError::NoPython {
        tried: format!("none named, VIRTUAL_ENV not set, and python3 on PATH: {error}"),
    })?;
    Ok((python, FoundBy::Path))
}

fn interpreter_of(folder: &Path) -> PathBuf {
    if cfg!(windows) { folder.join("Scripts/python.exe") } else { folder.join("bin/python") }
}

fn ask(python: &Path) -> Result<Answer, EmbedError> {
    let unusable = |reason: String| EmbedError::NotUsable { python: python.to_owned(), reason };
    let output = Command::new(python)
        .args(["-c", QUESTION])
        .env("PYTHONSAFEPATH", "1") // what lies in the working folder is no package
        .output()
        .map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Other code that runs at start (`sitecustomize`) may print as well.
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it says nothing of itself");
        unusable(said.to_owned())
    })
}
