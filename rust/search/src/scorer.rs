//! States to scores: embeddings of a cache or an encoder, through an energy head.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebm_cache::BadRow;
use ebm_encoder::{CachedAnswer, CachedEncoder, EncoderResult, NoEmbedding};

use crate::finite::is_finite;
use crate::head::{EnergyHead, HeadResult};
use crate::state_format::{STATE_FORMAT_FIELD, StateFormat, StateFormatError, convert};

/// A node of a search, as it is to be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node<'a> {
    /// A state with goals: its text.
    Open(&'a str),
    /// A finished proof: no goals are left. It is never encoded.
    Finished,
}

/// How good a node is.
///
/// Scores of one head are ordered: a finished proof is better than any open state, and of two scored
/// states the one with the higher score, which has the lower energy, is better. An unscored node is
/// neither better nor worse than another.
#[derive(Debug, Clone, PartialEq)]
pub enum Score {
    /// A finished proof, the best by definition.
    Finished,
    /// An open state that was scored.
    Scored(Scored),
    /// An open state without a score; there is no number for it.
    Unscored(NoScore),
}

/// What a head says of an open state. All values are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Scored {
    /// Lower is better.
    pub energy: f32,
    /// Minus the energy; higher is better.
    pub score: f32,
    /// The score in deviations from the mean of the validation states; higher is better.
    pub z: f32,
}

impl Scored {
    /// A score of a rule, which is its own z-score. It must be finite.
    #[must_use]
    pub fn by_rule(score: f32) -> Self {
        Self { energy: -score, score, z: score }
    }
}

/// Why an open state has no score.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoScore {
    /// It has no valid embedding.
    #[error("no embedding: {0}")]
    NoEmbedding(#[from] NoEmbedding),
    /// Its text is empty, though it is not said to be a finished proof.
    #[error("the text of an open state is empty")]
    EmptyText,
    /// Its text cannot be converted to the form of the encoder's states.
    #[error("{0}")]
    OtherForm(String),
    /// The energy of its embedding, or the z-score, is beyond float32.
    #[error("its energy is beyond float32")]
    Overflow,
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Finished, Self::Finished) => Some(Ordering::Equal),
            (Self::Finished, Self::Scored(_)) => Some(Ordering::Greater),
            (Self::Scored(_), Self::Finished) => Some(Ordering::Less),
            (Self::Scored(left), Self::Scored(right)) => left.score.partial_cmp(&right.score),
            (Self::Unscored(left), Self::Unscored(right)) if left == right => Some(Ordering::Equal),
            (Self::Unscored(_), _) | (_, Self::Unscored(_)) => None,
        }
    }
}

/// Scores the nodes of a search: an [`EnergyHead`] behind a [`CachedEncoder`].
///
/// The embeddings of a call are gathered into one matrix and scored in one forward pass. Many threads
/// may share a scorer.
#[derive(Debug)]
pub struct ValueScorer {
    encoder: Arc<CachedEncoder>,
    head: Arc<EnergyHead>,
    /// The printed forms of the nodes' texts and of the encoder's states, where they differ.
    conversion: Option<(StateFormat, StateFormat)>,
}

impl ValueScorer {
    /// Puts a head behind an encoder, whose embeddings must be those that the head was trained on.
    ///
    /// # Errors
    /// [`HeadError::IdentityMismatch`](crate::HeadError::IdentityMismatch), naming the fields in which the
    /// encoder, or the cache in front of it, differs from the head's;
    /// [`HeadError::Dim`](crate::HeadError::Dim) if the embeddings are of another length.
    pub fn new(
        encoder: impl Into<Arc<CachedEncoder>>,
        head: impl Into<Arc<EnergyHead>>,
    ) -> HeadResult<Self> {
        let (encoder, head) = (encoder.into(), head.into());
        head.require_identity(Some(encoder.identity()), "the encoder")?;
        head.require_dim(encoder.dim(), "the encoder")?;
        // An encoder may be told to serve a cache of a different one; a head never is.
        if let Some(cache) = encoder.cache() {
            head.require_cache(cache)?;
        }
        Ok(Self { encoder, head, conversion: None })
    }

    /// The same for nodes whose texts are of this printed form; they are converted to the form of the
    /// encoder's states, if its identity says one.
    ///
    /// # Errors
    /// [`StateFormatError`], if the identity's form is none that this version knows.
    pub fn with_states_in(mut self, printed: StateFormat) -> Result<Self, StateFormatError> {
        let said = self.encoder.identity().extra.get(STATE_FORMAT_FIELD);
        let name = said.map(|name| name.as_str().unwrap_or_default());
        let wanted: StateFormat = name.map(str::parse).transpose()?.unwrap_or_default();
        let differ = wanted != StateFormat::AsGiven && printed != wanted;
        self.conversion = differ.then_some((printed, wanted));
        Ok(self)
    }

    /// The encoder.
    #[must_use]
    pub fn encoder(&self) -> &Arc<CachedEncoder> {
        &self.encoder
    }

    /// The head.
    #[must_use]
    pub fn head(&self) -> &Arc<EnergyHead> {
        &self.head
    }

    /// The score of each node, in their order. What is not known is encoded in one request.
    ///
    /// # Errors
    /// As for [`CachedEncoder::encode`]. A state that has no embedding is no error: it is
    /// [`Score::Unscored`].
    pub fn score(&self, nodes: &[Node<'_>]) -> EncoderResult<Vec<Score>> {
        let prepared = self.prepare(nodes);
        let answers = self.encoder.encode(&texts(&prepared))?;
        Ok(self.scores(prepared, answers))
    }

    /// The same with a time limit for the encoder.
    ///
    /// # Errors
    /// As for [`CachedEncoder::encode_within`].
    pub fn score_within(&self, nodes: &[Node<'_>], time: Duration) -> EncoderResult<Vec<Score>> {
        let prepared = self.prepare(nodes);
        let answers = self.encoder.encode_within(&texts(&prepared), time)?;
        Ok(self.scores(prepared, answers))
    }

    /// The same with a time limit, if there is one, also ended as soon as `stop` returns true; and how
    /// long the embeddings took.
    ///
    /// # Errors
    /// As for [`CachedEncoder::encode_unless`].
    pub fn score_unless(
        &self,
        nodes: &[Node<'_>],
        time: Option<Duration>,
        stop: &mut (dyn FnMut() -> bool + Send),
    ) -> EncoderResult<(Vec<Score>, Duration)> {
        let start = Instant::now();
        let prepared = self.prepare(nodes);
        let answers = self.encoder.encode_unless(&texts(&prepared), time, stop)?;
        let encoding = start.elapsed();
        Ok((self.scores(prepared, answers), encoding))
    }

    /// The same for a task. Only the encoder is waited for; the forward pass runs on this thread.
    ///
    /// # Errors
    /// As for [`CachedEncoder::encode_async`].
    pub async fn score_async(&self, nodes: &[Node<'_>]) -> EncoderResult<Vec<Score>> {
        let prepared = self.prepare(nodes);
        let answers = self.encoder.encode_async(&texts(&prepared)).await?;
        Ok(self.scores(prepared, answers))
    }

    /// What each node is to the encoder.
    fn prepare<'a>(&self, nodes: &[Node<'a>]) -> Vec<Prepared<'a>> {
        let prepared = |node: &Node<'a>| match (*node, self.conversion) {
            (Node::Finished, _) => Prepared::Known(Score::Finished),
            (Node::Open(""), _) => Prepared::Known(Score::Unscored(NoScore::EmptyText)),
            (Node::Open(text), None) => Prepared::State(Cow::Borrowed(text)),
            (Node::Open(text), Some((from, to))) => match convert(text, from, to) {
                Ok(text) => Prepared::State(text),
                Err(error) => {
                    Prepared::Known(Score::Unscored(NoScore::OtherForm(error.to_string())))
                }
            },
        };
        nodes.iter().map(prepared).collect()
    }

    /// Scores of nodes, from the answers for those that were encoded.
    fn scores(&self, nodes: Vec<Prepared<'_>>, answers: Vec<CachedAnswer<'_>>) -> Vec<Score> {
        let mut matrix = Vec::with_capacity(answers.len() * self.head.dim());
        let mut gathered = Vec::with_capacity(answers.len());
        for answer in answers {
            gathered.push(answer.map_err(NoScore::from).and_then(|row| {
                require_valid(&row)?;
                matrix.extend_from_slice(&row);
                Ok(())
            }));
        }
        let mut energies = self.head.forward(&matrix).into_iter();
        let mut gathered = gathered.into_iter();
        let missing = || NoScore::NoEmbedding(NoEmbedding::Failed { reason: MISSING.to_owned() });
        let mut encoded = || {
            gathered.next().unwrap_or_else(|| Err(missing()))?;
            self.value(energies.next().ok_or_else(missing)?)
        };
        let score = |node: Prepared<'_>| match node {
            Prepared::Known(score) => score,
            Prepared::State(_) => encoded().map_or_else(Score::Unscored, Score::Scored),
        };
        nodes.into_iter().map(score).collect()
    }

    fn value(&self, energy: f32) -> Result<Scored, NoScore> {
        let value = Scored { energy, score: -energy, z: self.head.z(-energy) };
        let finite = energy.is_finite() && value.z.is_finite();
        if finite { Ok(value) } else { Err(NoScore::Overflow) }
    }
}

/// What [`CachedEncoder`] promises not to happen: an answer less than there are states.
const MISSING: &str = "internal error: the state has no answer";

/// A node that needs no encoder, or the text that is encoded.
enum Prepared<'a> {
    Known(Score),
    State(Cow<'a, str>),
}

/// The states that are encoded.
fn texts<'a>(nodes: &'a [Prepared<'_>]) -> Vec<&'a str> {
    let text = |node: &'a Prepared<'_>| match node {
        Prepared::State(text) => Some(&**text),
        Prepared::Known(_) => None,
    };
    nodes.iter().filter_map(text).collect()
}

/// Refuses what no valid embedding is. What was encoded is checked already; a cache that was opened
/// without checks may hold such rows.
fn require_valid(row: &[f32]) -> Result<(), NoEmbedding> {
    let bad = |reason: BadRow| Err(NoEmbedding::Bad { reason: reason.to_string() });
    if !is_finite(row)
        && let Some(column) = row.iter().position(|value| !value.is_finite())
    {
        return bad(BadRow::NonFinite { column, value: row[column] });
    }
    if row.iter().all(|value| *value == 0.0) {
        return bad(BadRow::ZeroNorm { norm: 0.0 });
    }
    Ok(())
}
