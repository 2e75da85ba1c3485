//! Where embeddings go beside the callers that asked for them: the memory, and the file to append
//! to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::appender::RowSink;
use crate::embedding::Answer;
use crate::memory::Memory;
use ebm_cache::StateKey;

/// What was encoded, counted.
#[derive(Debug, Default)]
pub(crate) struct Encodings {
    pub(crate) tokens: AtomicU64,
    pub(crate) truncated: AtomicU64,
}

/// Keeps embeddings that passed the row checks.
pub(crate) struct Keep {
    pub(crate) memory: Memory,
    pub(crate) appended: Option<RowSink>,
    pub(crate) encodings: Arc<Encodings>,
}

impl Keep {
    /// Keeps the embeddings of a batch, before its callers get them.
    pub(crate) fn keep(&self, states: &[Arc<str>], answers: &[Answer]) {
        for (state, answer) in states.iter().zip(answers) {
            let Ok(embedding) = answer else { continue };
            self.memory.insert(state, embedding);
            let prompt = embedding.prompt();
            self.encodings.tokens.fetch_add(prompt.tokens as u64, Ordering::Relaxed);
            self.encodings.truncated.fetch_add(u64::from(prompt.truncated), Ordering::Relaxed);
        }
        if let Some(sink) = &self.appended {
            sink.append(states, answers);
        }
    }

    /// Puts another embedding in the place of one that was kept, or none.
    pub(crate) fn replace(&self, state: &Arc<str>, answer: Option<&Answer>) {
        self.memory.remove(state);
        if let Some(Ok(embedding)) = answer {
            self.memory.insert(state, embedding);
        }
        if let Some(sink) = &self.appended {
            sink.replace(state, answer);
        }
    }

    /// The text of a state whose embedding was kept.
    pub(crate) fn text_of(&self, key: StateKey) -> Option<Arc<str>> {
        let appended = || self.appended.as_ref()?.text_of(key);
        self.memory.text_of(key).or_else(appended)
    }
}
