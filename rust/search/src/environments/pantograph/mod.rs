//! Lean by way of [Pantograph](https://github.com/leanprover/Pantograph), a REPL for proofs.
//!
//! [`PantographEnvironment`] runs Pantograph's `repl` as child processes and speaks its protocol, a line of
//! JSON for each request and answer, as of version 0.3.4 and later. It was tested against a stand-in
//! that speaks this protocol; no real Pantograph was met.
//!
//! # What is a proof
//! - Automatic mode is on, so that all goals stay in view, and that it is on is checked.
//! - A tactic finishes a proof if the list of goals is there and empty, and the root's term has no
//!   open metavariable, no `sorry` and nothing unsafe. An answer that does not say so is a refusal.
//! - [`Environment::verify`] replays the tactics in a process in which no search was, and has Lean read
//!   the proof as a file. Errors, `sorry`, axioms other than `propext`, `Classical.choice` and
//!   `Quot.sound`, commands between the tactics, and silence about the axioms refuse it. A theorem
//!   that the library knows by its name must not be used in its own proof.
//!
//! # Processes
//! Each runs in a process group of its own, and the group is ended as a whole. What ends, hangs, or
//! answers something else than JSON is replaced, and its states are brought back by their tactics. A
//! tactic that kills its process twice is refused.
//!
//! # Texts
//! A state is printed as `PyPantograph` prints goals: `case NAME` where the goal has a name, a line for
//! each variable, `NAME : TYPE` or `NAME : TYPE := VALUE`, then `⊢ TARGET`; a blank line between goals.
//! Lean itself prints `p q : Prop` for two variables. An encoder sees two texts there.

mod check;
mod fault;
mod options;
mod pool;
mod process;
mod protocol;
mod session;
mod step;
mod text;
mod worker;

use std::fmt;
use std::sync::Arc;

pub use options::{Framing, PantographOptions};

use crate::search::{Control, Environment, EnvironmentResult, Session, Theorem, Verdict};
use fault::{NAME, unavailable};
use pool::Pool;
use session::PantographSession;

/// Proves in Lean, by processes of Pantograph's `repl`.
///
/// ```no_run
/// use ebm_search::environments::pantograph::{PantographEnvironment, PantographOptions};
/// use ebm_search::search::{Cancel, Control, Environment, Theorem};
///
/// let options = PantographOptions::new("lake")
///     .with_arguments(["env", "repl", "Mathlib"])
///     .with_working_folder("my-lean-project");
/// let lean = PantographEnvironment::new(options)?;
/// let theorem = Theorem::named("t").with_statement("(p : Prop) (h : p) : p");
/// let (mut session, root) = lean.start(&theorem, &Control::new(Cancel::default()))?;
/// assert_eq!(&*root, "⊢ ∀ (p : Prop), p → p");
/// # Ok::<(), ebm_search::search::EnvironmentError>(())
/// ```
pub struct PantographEnvironment {
    pool: Pool,
}

impl PantographEnvironment {
    /// An environment whose processes start when they are needed, at most `workers` for searches.
    ///
    /// # Errors
    /// [`EnvironmentError::Unavailable`](crate::search::EnvironmentError::Unavailable) for options that
    /// make no sense.
    pub fn new(options: PantographOptions) -> EnvironmentResult<Self> {
        match options.fault() {
            Some(fault) => Err(unavailable(fault)),
            None => Ok(Self { pool: Pool::new(options) }),
        }
    }
}

impl Environment for PantographEnvironment {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start<'a>(
        &'a self,
        theorem: &'a Theorem,
        control: &Control,
    ) -> EnvironmentResult<(Box<dyn Session + 'a>, Arc<str>)> {
        let lease = self.pool.lease(control)?;
        let (session, text) = PantographSession::start(lease, theorem, control)?;
        Ok((Box::new(session), text))
    }

    fn verify(
        &self,
        theorem: &Theorem,
        proofs: &[Vec<Arc<str>>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Verdict>> {
        if proofs.is_empty() {
            return Ok(Vec::new());
        }
        let mut lease = self.pool.fresh(control)?;
        check::verdicts(&mut lease, theorem, proofs, control)
    }
}

impl fmt::Debug for PantographEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PantographEnvironment").finish_non_exhaustive()
    }
}
