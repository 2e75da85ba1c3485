//! What applies tactics.

use std::sync::Arc;

use super::control::{Control, Stop};

/// What is to be proved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Theorem {
    /// Its name, which is unique among the theorems of a run.
    pub name: String,
    /// What it says, as in Lean: a type (`∀ (p : Prop), p → p`), or binders, a colon and a type
    /// (`(p : Prop) (h : p) : p`). `None` where the environment knows the theorem by its name.
    pub statement: Option<String>,
    /// The text that its first state must have, where the statement was read off that text.
    pub first_state: Option<String>,
}

impl Theorem {
    /// A theorem that the environment knows by its name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), statement: None, first_state: None }
    }

    /// The same with its statement.
    #[must_use]
    pub fn with_statement(mut self, statement: impl Into<String>) -> Self {
        self.statement = Some(statement.into());
        self
    }

    /// The same with the text that its first state must have. A statement that was read off a printed state may
    /// say something else than the state's, since print leaves things out.
    #[must_use]
    pub fn with_first_state(mut self, text: impl Into<String>) -> Self {
        self.first_state = Some(text.into());
        self
    }

    /// Compares the first state that an environment prints with the one that is wanted.
    pub(crate) fn require_first_state(&self, text: &str) -> EnvironmentResult<()> {
        match &self.first_state {
            Some(wanted) if wanted != text => Err(EnvironmentError::Theorem {
                theorem: self.name.clone(),
                reason: format!(
                    "its statement was read off the state {wanted:?}, but it starts with {text:?}\nhint: give \
                     its statement in a file of theorems"
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// A state of a [`Session`], numbered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateId(pub u64);

impl StateId {
    /// The state in which a session starts.
    pub const ROOT: Self = Self(0);
}

/// What a tactic did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It was accepted, and goals are left.
    Open {
        /// The new state.
        state: StateId,
        /// Its goals as the environment prints them, never empty.
        text: Arc<str>,
    },
    /// It was accepted, and no goal is left: a proof, if [`Environment::verify`] says so too.
    Finished,
    /// It was refused.
    Refused(String),
}

/// What a check of a whole proof found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It proves the theorem.
    Proof,
    /// It does not; the reason.
    Refused(String),
}

/// Why an environment gives no answer. A tactic that is refused is an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvironmentError {
    /// It cannot be used at all: it is not installed, or does not start. No other theorem will fare better.
    #[error("{environment}: {reason}")]
    Unavailable {
        /// Its name.
        environment: &'static str,
        /// Why, with a `hint:` where there is a way out.
        reason: String,
    },
    /// This theorem cannot be started: its statement is wrong, or its name unknown.
    #[error("theorem {theorem:?}: {reason}")]
    Theorem {
        /// The theorem.
        theorem: String,
        /// Why.
        reason: String,
    },
    /// It died or hung, and starting it again did not help.
    #[error("{environment}: {reason}")]
    Failed {
        /// Its name.
        environment: &'static str,
        /// What happened.
        reason: String,
    },
    /// The search was stopped while it waited.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

/// Results of environments.
pub type EnvironmentResult<T> = Result<T, EnvironmentError>;

/// Applies tactics to proof states: a recorded tree, or a Lean process.
///
/// Many theorems are searched at once, each by a thread and with a session. An environment that has
/// fewer workers than there are sessions lets them wait for each other.
pub trait Environment: Send + Sync {
    /// What it is called in messages and in records: `replay`, `pantograph`, `lean`.
    fn name(&self) -> &'static str;

    /// Starts a theorem: a session, and the text of its first state, [`StateId::ROOT`].
    ///
    /// # Errors
    /// [`EnvironmentError`].
    fn start<'a>(
        &'a self,
        theorem: &'a Theorem,
        control: &Control,
    ) -> EnvironmentResult<(Box<dyn Session + 'a>, Arc<str>)>;

    /// Checks whole proofs, each a list of tactics from the root, in a process in which no search was.
    /// There is one verdict for each, in their order.
    ///
    /// # Errors
    /// [`EnvironmentError`], if a proof could not be checked.
    fn verify(
        &self,
        theorem: &Theorem,
        proofs: &[Vec<Arc<str>>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Verdict>>;
}

/// The states of one theorem under search.
///
/// A session that loses its process starts another and brings its states back, so that a search never
/// sees the loss.
pub trait Session {
    /// Applies each tactic to a state. There is one answer for each, in their order.
    ///
    /// # Errors
    /// [`EnvironmentError`].
    fn apply(
        &mut self,
        state: StateId,
        tactics: &[Arc<str>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Applied>>;

    /// Says that a state is never asked for again.
    fn dispose(&mut self, state: StateId);
}
