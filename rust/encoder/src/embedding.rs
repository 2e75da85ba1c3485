//! Embeddings handed out by reference, and why a state has none.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::EncoderError;

/// A digest of the prompt that went through the model, after any cut: of its token ids, or of what all
/// prompts share that the model rightly gives equal embeddings.
///
/// The embeddings of states with equal digests may be equal. Digests are compared within one
/// encoder only; any hash of 64 bits will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest(u64);

impl TokenDigest {
    /// A digest that the encoder computed.
    #[must_use]
    pub const fn new(digest: u64) -> Self {
        Self(digest)
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The digest of some token ids.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(digest))
    }
}

/// What is known of the prompt of a state that was encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptInfo {
    /// Its length in tokens, before any cut.
    pub tokens: usize,
    /// Whether it was cut.
    pub truncated: bool,
    /// The token ids that went through the model. Without a digest, an embedding that equals another
    /// state's is always refused.
    pub digest: Option<TokenDigest>,
}

impl PromptInfo {
    /// A prompt of some tokens that was not cut.
    #[must_use]
    pub const fn new(tokens: usize) -> Self {
        Self { tokens, truncated: false, digest: None }
    }

    /// Says whether the prompt was cut.
    #[must_use]
    pub const fn with_truncated(self, truncated: bool) -> Self {
        Self { truncated, ..self }
    }

    /// Says which tokens went through the model.
    #[must_use]
    pub const fn with_digest(self, digest: Option<TokenDigest>) -> Self {
        Self { digest, ..self }
    }
}

/// Why a state has no embedding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoEmbedding {
    /// The one that was made failed the row checks.
    #[error("{reason}")]
    Bad {
        /// Which check, and how.
        reason: String,
    },
    /// The prompt is longer than the encoder's longest.
    #[error("{tokens} tokens are too many")]
    TooLong {
        /// Its length in tokens.
        tokens: usize,
    },
    /// Another reason: no token, or no memory.
    #[error("{reason}")]
    Failed {
        /// Which.
        reason: String,
    },
    /// The encoder failed on this state.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
}

/// What an encoder reports of one state: its prompt, where it wrote an embedding, or why it has none.
pub type Report = Result<PromptInfo, NoEmbedding>;

/// The memory of one batch, shared by all who got an embedding of it.
pub(crate) type BatchMemory = Arc<[f32]>;

/// One embedding, by reference into the memory of its batch; cloning copies no values.
///
/// A batch's memory lives as long as any of its embeddings.
#[derive(Clone)]
pub(crate) struct Row {
    batch: BatchMemory,
    start: usize,
    dim: usize,
}

impl Row {
    pub(crate) fn new(batch: &BatchMemory, index: usize, dim: usize) -> Self {
        Self { batch: Arc::clone(batch), start: index * dim, dim }
    }
}

impl Deref for Row {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.batch[self.start..self.start + self.dim]
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} values)", self.dim)
    }
}

/// An embedding that was encoded, and its prompt. It lends its values as a slice.
#[derive(Debug, Clone)]
pub struct Embedding {
    row: Row,
    prompt: PromptInfo,
}

impl Embedding {
    pub(crate) const fn new(row: Row, prompt: PromptInfo) -> Self {
        Self { row, prompt }
    }

    /// What is known of the prompt.
    #[must_use]
    pub const fn prompt(&self) -> &PromptInfo {
        &self.prompt
    }

    /// The same with its own values, which keeps no batch alive.
    pub(crate) fn owned(&self) -> Self {
        Self { row: Row::new(&Arc::from(&**self), 0, self.len()), prompt: self.prompt }
    }
}

impl Deref for Embedding {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.row
    }
}

impl AsRef<[f32]> for Embedding {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

impl PartialEq for Embedding {
    /// Compares the values.
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// The answer for one state: its embedding, or why it has none.
pub type Answer = Result<Embedding, NoEmbedding>;
