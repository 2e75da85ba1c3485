//! An encoder without a model, for tests of what is built on encoders.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{
    Encoder, EncoderError, EncoderResult, NoEmbedding, PromptInfo, Report, TokenDigest,
    require_room,
};
use ebm_cache::Identity;

/// Embeddings made from a hash of the state: the same state always has the same embedding, on any
/// machine.
///
/// Faults are put in by the text: a state with the word `poison` makes the whole call fail, as a
/// Python exception would; one with `bad` has a bad embedding, and one with `long` is too long.
#[derive(Debug)]
pub struct TestEncoder {
    dim: usize,
    identity: Identity,
    calls: AtomicUsize,
    encoded: AtomicUsize,
    before: fn(&[&str]),
}

impl TestEncoder {
    /// An encoder of embeddings of `dim` values with a given identity.
    ///
    /// # Errors
    /// [`EncoderError::Argument`] if `dim` is 0.
    pub fn new(dim: usize, identity: Identity) -> EncoderResult<Self> {
        if dim == 0 {
            return Err(EncoderError::Argument("rows need at least one value".to_owned()));
        }
        let (calls, encoded) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self { dim, identity, calls, encoded, before: |_| () })
    }

    /// Calls a function with the states of each call before it does anything: to wait, or to panic.
    #[must_use]
    pub fn before_each_call(mut self, before: fn(&[&str])) -> Self {
        self.before = before;
        self
    }

    /// The embedding of a state.
    #[must_use]
    pub fn row(&self, state: &str) -> Vec<f32> {
        let mut bytes = vec![0; self.dim * 2];
        blake3::Hasher::new().update(state.as_bytes()).finalize_xof().fill(&mut bytes);
        let value = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
        bytes.chunks_exact(2).map(value).collect()
    }

    /// How often it was called.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many states it was given, over all calls.
    #[must_use]
    pub fn encoded(&self) -> usize {
        self.encoded.load(Ordering::Relaxed)
    }
}

impl Encoder for TestEncoder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        require_room(states.len(), self.dim, rows.len())?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.encoded.fetch_add(states.len(), Ordering::Relaxed);
        (self.before)(states);
        if states.iter().any(|state| state.contains("poison")) {
            return Err(EncoderError::Failed {
                kind: "PoisonError".to_owned(),
                message: "a state is poisoned".to_owned(),
                trace: None,
            });
        }
        let mut reports = Vec::with_capacity(states.len());
        for (state, row) in states.iter().zip(rows.chunks_mut(self.dim)) {
            row.copy_from_slice(&self.row(state));
            reports.push(report(state));
        }
        Ok(reports)
    }
}

fn report(state: &str) -> Report {
    if state.contains("bad") {
        return Err(NoEmbedding::Bad { reason: "norm 0e0 is zero".to_owned() });
    }
    if state.contains("long") {
        return Err(NoEmbedding::TooLong { tokens: 5000 });
    }
    let tokens: Vec<u32> = state.bytes().map(u32::from).collect();
    Ok(PromptInfo::new(tokens.len()).with_digest(Some(TokenDigest::of(&tokens))))
}
