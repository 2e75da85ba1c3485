//! What the thread that appends is asked to do.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ebm_cache::{CacheResult, FinishReport, StateKey};
use serde_json::Value;

use crate::embedding::{Answer, Embedding, TokenDigest};

/// An embedding to be appended.
pub(crate) struct NewRow {
    pub(crate) state: Arc<str>,
    pub(crate) embedding: Embedding,
}

impl NewRow {
    pub(crate) fn of(state: &Arc<str>, answer: &Answer) -> Option<Self> {
        let embedding = answer.as_ref().ok()?.clone();
        Some(Self { state: Arc::clone(state), embedding })
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.state.len() + size_of_val(&*self.embedding)) as u64
    }
}

pub(crate) type Reply<T> = flume::Sender<CacheResult<T>>;

/// What the thread is asked to do, one after the other.
pub(crate) enum Job {
    Append(Vec<NewRow>),
    Replace(Arc<str>, Option<NewRow>),
    Tokens(StateKey, TokenDigest),
    TextOf(StateKey, flume::Sender<Option<String>>),
    Checkpoint(Reply<()>),
    Commit(Value, Reply<u64>),
    Finish(Value, Reply<FinishReport>),
}

/// What the thread and those that give it embeddings count.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Bytes of embeddings that are not saved yet.
    pub(crate) unsaved: AtomicU64,
    /// Embeddings that were not taken, because too many are not saved yet.
    pub(crate) dropped: AtomicU64,
    /// Embeddings of which the writer said that they must not be in its file.
    pub(crate) refused: AtomicU64,
}
