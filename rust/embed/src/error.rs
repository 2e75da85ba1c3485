//! Everything that can go wrong on the way to a running encoder.

use std::path::PathBuf;

use crate::PYTHON_VERSION;
use crate::exception::PythonException;

/// Why there is no Python encoder.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// No Python was found.
    #[error(
        "no Python found ({tried}); activate the virtual environment in which ebm-encode is \
         installed, or name its folder"
    )]
    NoPython {
        /// Where it was looked for.
        tried: String,
    },
    /// A Python does not run, or is none.
    #[error("{}: does not run as a Python interpreter: {reason}", python.display())]
    NotUsable {
        /// The interpreter.
        python: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A Python of another version than this program was built for.
    #[error(
        "{}: is {implementation} {found}, and this program was built for CPython {PYTHON_VERSION}; \
         use an environment of that version, or build with PYO3_PYTHON set to this interpreter",
        python.display()
    )]
    WrongPython {
        /// The interpreter.
        python: PathBuf,
        /// `cpython` or another implementation.
        implementation: String,
        /// Its version.
        found: String,
    },
    /// The environment lacks a package.
    #[error(
        "{}: has no package {package}; install it there with `{} -m pip install {package}`",
        python.display(), python.display()
    )]
    MissingPackage {
        /// The interpreter.
        python: PathBuf,
        /// The package's name.
        package: &'static str,
    },
    /// The environment has another version of the package `ebm-encode`.
    #[error(
        "{}: has ebm-encode {found}, and this program was built for {expected}; install that \
         version there with `{} -m pip install ebm-encode=={expected}`",
        python.display(), python.display()
    )]
    WrongPackage {
        /// The interpreter.
        python: PathBuf,
        /// Its version of the package.
        found: String,
        /// The version that is needed.
        expected: &'static str,
    },
    /// The interpreter could not be started.
    #[error("{}: the interpreter cannot be started: {reason}", python.display())]
    Start {
        /// The interpreter.
        python: PathBuf,
        /// What CPython says.
        reason: String,
    },
    /// The library that was loaded belongs to another installation than the interpreter asked for.
    #[error(
        "{}: expected Python {expected}, and the library loaded by this program is Python {found}; \
         another libpython comes first on the library path, or the program was built for another \
         installation (PYO3_PYTHON)",
        python.display()
    )]
    WrongLibrary {
        /// The interpreter.
        python: PathBuf,
        /// Version and prefix of the interpreter.
        expected: String,
        /// Version and prefix of what runs.
        found: String,
    },
    /// A process has one interpreter, and it runs in another environment.
    #[error(
        "Python runs in this process already, of {}; it cannot be started again for {}",
        running.display(), asked.display()
    )]
    AlreadyStarted {
        /// The interpreter in use.
        running: PathBuf,
        /// The other one.
        asked: PathBuf,
    },
    /// Python raised an exception.
    #[error(transparent)]
    Python(#[from] PythonException),
    /// The package does not behave as this crate expects.
    #[error("the Python package ebm_encode: {0}")]
    Unexpected(String),
    /// The thread of Python has ended.
    #[error("the thread of Python has ended")]
    Closed,
    /// It was loaded in another process, before a fork.
    #[error("it was loaded before this process was forked\nhint: load it after the fork")]
    Forked,
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}
