//! Where rows go beside the callers that asked for them: the memory, and the file to append to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RowReport;
use super::appender::RowSink;
use super::memory::Memory;
use super::row::Encoded;
use crate::cache::StateKey;

/// What was encoded, counted.
#[derive(Debug, Default)]
pub(super) struct Encodings {
    pub(super) tokens: AtomicU64,
    pub(super) truncated: AtomicU64,
}

/// Keeps rows that passed the row checks.
pub(super) struct Keep {
    pub(super) memory: Memory,
    pub(super) appended: Option<RowSink>,
    pub(super) encodings: Arc<Encodings>,
}

impl Keep {
    /// Keeps the rows of a batch, before its callers get them.
    pub(super) fn keep(&self, states: &[Arc<str>], answers: &[Encoded]) {
        for (state, answer) in states.iter().zip(answers) {
            self.memory.insert(state, answer);
            if let RowReport::Ok { tokens, truncated, .. } = answer.report {
                self.encodings.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
                self.encodings.truncated.fetch_add(u64::from(truncated), Ordering::Relaxed);
            }
        }
        if let Some(sink) = &self.appended {
            sink.append(states, answers);
        }
    }

    /// Puts another row in the place of one that was kept, or none.
    pub(super) fn replace(&self, state: &Arc<str>, answer: Option<&Encoded>) {
        self.memory.remove(state);
        if let Some(answer) = answer {
            self.memory.insert(state, answer);
        }
        if let Some(sink) = &self.appended {
            sink.replace(state, answer);
        }
    }

    /// The text of a state whose row was kept.
    pub(super) fn text_of(&self, key: StateKey) -> Option<Arc<str>> {
        let appended = || self.appended.as_ref()?.text_of(key);
        self.memory.text_of(key).or_else(appended)
    }
}
