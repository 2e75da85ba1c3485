//! One CPython in this process, started with the right environment.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::environment::Environment;
use crate::error::EmbedError;
use crate::exception::attach;
use crate::signals::Interrupts;

static RUNNING: OnceLock<Interpreter> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// The interpreter of this process. It runs until the process ends.
#[derive(Debug)]
pub struct Interpreter {
    environment: Environment,
}

impl Interpreter {
    /// Starts Python, or gives the one that runs already.
    ///
    /// `named` is a virtual environment's folder or a Python interpreter; without it, the variable
    /// `VIRTUAL_ENV` and then the first `python3` on `PATH` decide. Signals are left to the host.
    ///
    /// # Errors
    /// What [`Environment::find`] says; [`EmbedError::Start`], [`EmbedError::WrongLibrary`], and
    /// [`EmbedError::AlreadyStarted`] if Python runs in another environment.
    pub fn start(named: Option<&Path>) -> Result<&'static Self, EmbedError> {
        let environment = Environment::find(named)?;
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = RUNNING.get() {
            return running.require_same(&environment);
        }
        let interrupts = Interrupts::note();
        initialize(&environment)?;
        let started = attach(|py| {
            // The first import of this module takes Ctrl-C over; later ones do nothing.
            py.import("signal")?;
            let version = py.import("platform")?.call_method0("python_version")?;
            let prefix = py.import("sys")?.getattr("prefix")?;
            Ok((version.extract::<String>()?, prefix.extract::<PathBuf>()?))
        });
        interrupts.restore();
        let (version, prefix) = started?;
        let expected = describe(environment.version(), environment.prefix());
        let found = describe(&version, &prefix);
        if expected != found {
            let python = environment.executable().to_owned();
            return Err(EmbedError::WrongLibrary { python, expected, found });
        }
        Ok(RUNNING.get_or_init(|| Self { environment }))
    }

    /// The environment it runs in.
    #[must_use]
    pub const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The interpreter of this process, if it was started.
    #[must_use]
    pub fn running() -> Option<&'static Self> {
        RUNNING.get()
    }

    /// Writes out what Python has buffered. Call it before the process ends: Python itself is not
    /// finalised, since torch's threads do not survive that, so its `atexit` functions do not run.
    /// A host that then ends by `_exit` spares itself the destructors of C++ libraries, too.
    ///
    /// # Errors
    /// What Python raises, of a closed pipe for example.
    pub fn flush(&self) -> Result<(), EmbedError> {
        attach(|py| {
            let sys = py.import("sys")?;
            for name in ["stdout", "stderr"] {
                let stream = sys.getattr(name)?;
                if !stream.is_none() {
                    stream.call_method0("flush")?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    fn require_same(&'static self, other: &Environment) -> Result<&'static Self, EmbedError> {
        if self.environment.prefix() == other.prefix() {
            return Ok(self);
        }
        Err(EmbedError::AlreadyStarted {
            running: self.environment.executable().to_owned(),
            asked: other.executable().to_owned(),
        })
    }
}

fn describe(version: &str, prefix: &Path) -> String {
    format!("{version} in {}", prefix.display())
}

/// Starts CPython as if the environment's own interpreter had been called, and lets go of it.
fn initialize(environment: &Environment) -> Result<(), EmbedError> {
    let python = environment.executable();
    let failed = |reason: String| EmbedError::Start { python: python.to_owned(), reason };
    let program = CString::new(python.as_os_str().as_encoded_bytes())
        .map_err(|error| failed(error.to_string()))?;
    let mut arguments = [c"".as_ptr()];
    let mut config = MaybeUninit::<ffi::PyConfig>::uninit();
    // SAFETY: no interpreter runs (the caller holds the lock, and nothing else here starts one).
    // The configuration is initialised before it is used and cleared after; the strings outlive
    // the calls, which copy them. The thread gives the interpreter back at the end, so that any
    // thread may attach.
    #[expect(unsafe_code, reason = "PyO3 starts only the default configuration")]
    let status = unsafe {
        if ffi::Py_IsInitialized() != 0 {
            return Ok(()); // by the host, before; whether it is the right one is checked next
        }
        ffi::PyConfig_InitPythonConfig(config.as_mut_ptr());
        let mut config = config.assume_init();
        config.parse_argv = 0;
        config.install_signal_handlers = 0;
        config.safe_path = 1;
        let name = &raw mut config.program_name;
        let mut status = ffi::PyConfig_SetBytesString(&raw mut config, name, program.as_ptr());
        if ffi::PyStatus_Exception(status) == 0 {
            status = ffi::PyConfig_SetBytesArgv(&raw mut config, 1, arguments.as_mut_ptr());
        }
        if ffi::PyStatus_Exception(status) == 0 {
            status = ffi::Py_InitializeFromConfig(&raw const config);
        }
        ffi::PyConfig_Clear(&raw mut config);
        if ffi::PyStatus_Exception(status) == 0 {
            ffi::PyEval_SaveThread();
            return Ok(());
        }
        status
    };
    let reason = if status.err_msg.is_null() {
        "it does not say why".to_owned()
    } else {
        // SAFETY: CPython's messages are constant strings.
        #[expect(unsafe_code, reason = "a C string")]
        let message = unsafe { CStr::from_ptr(status.err_msg) };
        message.to_string_lossy().into_owned()
    };
    Err(failed(reason))
}
