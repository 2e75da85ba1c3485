//! What scores states.

use std::error::Error;
use std::time::Duration;

use super::control::{Control, Stop};
use crate::scorer::{Node, Score, ValueScorer};
use ebm_encoder::EncoderError;

/// Scores of nodes, and how long their embeddings took.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Scores {
    /// One for each node, in their order.
    pub scores: Vec<Score>,
    /// How much of the time went to the encoder.
    pub encoding: Duration,
}

impl Scores {
    /// Scores that needed no encoder.
    #[must_use]
    pub fn new(scores: Vec<Score>) -> Self {
        Self { scores, encoding: Duration::ZERO }
    }
}

/// Why there are no scores at all. A single state without one is [`Score::Unscored`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScorerError {
    /// The encoder failed.
    #[error("scorer: {0}")]
    Failed(Box<dyn Error + Send + Sync>),
    /// The search was stopped while it waited.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

/// Scores states; higher is better. Many threads share one.
pub trait Scorer: Send + Sync {
    /// The score of each node of a theorem, in their order.
    ///
    /// # Errors
    /// [`ScorerError`].
    fn score(
        &self,
        theorem: &str,
        nodes: &[Node<'_>],
        control: &Control,
    ) -> Result<Scores, ScorerError>;
}

impl Scorer for ValueScorer {
    fn score(
        &self,
        _theorem: &str,
        nodes: &[Node<'_>],
        control: &Control,
    ) -> Result<Scores, ScorerError> {
        control.check()?;
        let found = self.score_unless(nodes, control.left(), &mut || control.check().is_err());
        let (scores, encoding) = found.map_err(|error| match (error, control.check()) {
            (EncoderError::TimedOut(_), _) => ScorerError::Stopped(Stop::Time),
            (EncoderError::Interrupted, Err(stop)) => ScorerError::Stopped(stop),
            (error, _) => ScorerError::Failed(Box::new(error)),
        })?;
        Ok(Scores { scores, encoding })
    }
}

/// A rule that scores states by their theorem and text: the oracle of a replay, the length of the text.
pub struct RuleScorer<F>(pub F);

impl<F> std::fmt::Debug for RuleScorer<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RuleScorer")
    }
}

impl<F: Fn(&str, &str) -> Score + Send + Sync> Scorer for RuleScorer<F> {
    fn score(
        &self,
        theorem: &str,
        nodes: &[Node<'_>],
        _control: &Control,
    ) -> Result<Scores, ScorerError> {
        let score = |node: &Node<'_>| match node {
            Node::Open(text) => (self.0)(theorem, text),
            Node::Finished => Score::Finished,
        };
        Ok(Scores::new(nodes.iter().map(score).collect()))
    }
}
