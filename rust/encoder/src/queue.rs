//! What waits for an encoder: requests, and how a batch is filled from them fairly.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::embedding::{Answer, Embedding};
use crate::error::{EncoderError, EncoderResult};

/// One caller's states, and what has been answered so far.
#[derive(Debug)]
pub(crate) struct Request {
    states: Vec<Arc<str>>,
    taken: usize,
    answers: Vec<Option<Answer>>,
    open: usize,
    reply: flume::Sender<EncoderResult<Vec<Answer>>>,
}

impl Request {
    pub(crate) fn new(
        states: Vec<Arc<str>>,
        reply: flume::Sender<EncoderResult<Vec<Answer>>>,
    ) -> Self {
        let open = states.len();
        Self { answers: vec![None; open], taken: 0, open, states, reply }
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether the caller has stopped waiting.
    pub(crate) fn abandoned(&self) -> bool {
        self.reply.is_disconnected()
    }

    /// Answers its next state with what is known of it.
    fn answer_known(&mut self, embedding: Embedding) {
        self.answers[self.taken] = Some(Ok(embedding));
        self.taken += 1;
        self.open -= 1;
    }

    /// Answers once all states have an answer; a caller that has stopped waiting gets none.
    fn reply_if_complete(&mut self) -> bool {
        if self.open > 0 {
            return false;
        }
        // One answer per state or none at all: a missing one would shift all embeddings behind it.
        let answers = self.answers.drain(..).collect::<Option<Vec<_>>>();
        let _ = self.reply.send(answers.ok_or_else(EncoderError::missing_answer));
        true
    }
}

/// The distinct states of a batch, and who wants each.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) states: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
    wanted: Vec<Vec<(u64, usize)>>,
}

impl Batch {
    fn add(&mut self, state: &Arc<str>, request: u64, index: usize) {
        let place = *self.places.entry(Arc::clone(state)).or_insert_with(|| {
            self.states.push(Arc::clone(state));
            self.wanted.push(Vec::new());
            self.states.len() - 1
        });
        self.wanted[place].push((request, index));
    }

    /// How many callers have a state in it.
    pub(crate) fn callers(&self) -> usize {
        let mut requests: Vec<u64> =
            self.wanted.iter().flatten().map(|(request, _)| *request).collect();
        requests.sort_unstable();
        requests.dedup();
        requests.len()
    }
}

/// Requests in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    requests: VecDeque<(u64, Request)>,
    next: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, request: Request) {
        self.requests.push_back((self.next, request));
        self.next += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Forgets callers that have stopped waiting, and answers those that asked for nothing.
    pub(crate) fn tidy(&mut self) {
        self.requests
            .retain_mut(|(_, request)| !request.abandoned() && !request.reply_if_complete());
    }

    /// Fills a batch, one state of each request after the other, so that a small request does not
    /// wait for all of a large one. Holds at least one state if any is left that is not known:
    /// what another batch made since it was asked for is answered at once.
    pub(crate) fn take(
        &mut self,
        max_states: usize,
        max_bytes: usize,
        known: impl Fn(&str) -> Option<Embedding>,
    ) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        loop {
            let mut any = false;
            for (id, request) in &mut self.requests {
                let Some(state) = request.states.get(request.taken) else { continue };
                any = true;
                if let Some(embedding) = known(state) {
                    request.answer_known(embedding);
                    continue;
                }
                let full = batch.states.len() >= max_states || bytes + state.len() > max_bytes;
                if full && !batch.states.is_empty() {
                    return batch;
                }
                bytes += state.len();
                batch.add(&Arc::clone(state), *id, request.taken);
                request.taken += 1;
            }
            if !any {
                return batch;
            }
        }
    }

    /// Hands out the answers of a batch, and replies to every caller that now has all answers.
    /// A caller of a state without an answer gets an error.
    pub(crate) fn answer(&mut self, batch: &Batch, answers: &[Answer]) {
        let mut by_request: HashMap<u64, Vec<(usize, Option<&Answer>)>> = HashMap::new();
        for (place, wanted) in batch.wanted.iter().enumerate() {
            for (request, index) in wanted {
                by_request.entry(*request).or_default().push((*index, answers.get(place)));
            }
        }
        self.requests.retain_mut(|(id, request)| {
            for (index, answer) in by_request.remove(id).unwrap_or_default() {
                request.answers[index] = answer.cloned();
                request.open -= 1;
            }
            !request.reply_if_complete()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedding::NoEmbedding;

    /// Requests in a queue that no worker empties, so that a batch's content can be seen.
    fn waiting(requests: &[&[&str]]) -> (Queue, Vec<flume::Receiver<EncoderResult<Vec<Answer>>>>) {
        let mut queue = Queue::default();
        let mut answers = Vec::new();
        for states in requests {
            let (reply, answer) = flume::bounded(1);
            queue.push(Request::new(states.iter().map(|s| Arc::from(*s)).collect(), reply));
            answers.push(answer);
        }
        (queue, answers)
    }

    fn unknown(_: &str) -> Option<Embedding> {
        None
    }

    fn texts(batch: &Batch) -> Vec<&str> {
        batch.states.iter().map(|state| &**state).collect()
    }

    #[test]
    fn a_small_request_does_not_wait_for_a_large_one() {
        let large: Vec<String> = (0..100).map(|i| format!("large {i}")).collect();
        let large: Vec<&str> = large.iter().map(String::as_str).collect();
        let (mut queue, _answers) = waiting(&[&large, &["small a", "small b"]]);
        let batch = queue.take(6, usize::MAX, unknown);
        assert_eq!(
            texts(&batch),
            ["large 0", "small a", "large 1", "small b", "large 2", "large 3"]
        );
        assert_eq!(batch.callers(), 2);
    }

    #[test]
    fn equal_states_of_several_callers_are_in_a_batch_once() {
        let (mut queue, _answers) = waiting(&[&["a", "b"], &["b", "a"], &["a"]]);
        let batch = queue.take(10, usize::MAX, unknown);
        assert_eq!(texts(&batch), ["a", "b"]);
        assert_eq!(batch.callers(), 3);
    }

    #[test]
    fn a_batch_keeps_its_bytes_but_holds_at_least_one_state() {
        let (mut queue, _answers) = waiting(&[&["twelve bytes", "two", "three"]]);
        assert_eq!(texts(&queue.take(10, 8, unknown)), ["twelve bytes"]);
        assert_eq!(texts(&queue.take(10, 8, unknown)), ["two", "three"]);
        assert!(queue.take(10, 8, unknown).states.is_empty());
    }

    #[test]
    fn a_caller_that_has_given_up_is_forgotten() {
        let (mut queue, mut answers) = waiting(&[&["a"], &["b"]]);
        answers.remove(0);
        queue.tidy();
        assert_eq!(texts(&queue.take(10, 100, unknown)), ["b"]);
    }

    #[test]
    fn a_missing_answer_shifts_no_row() {
        let (mut queue, answers) = waiting(&[&["a", "b", "c"], &["a"]]);
        let batch = queue.take(10, 100, unknown);
        let reason = NoEmbedding::TooLong { tokens: 1 };
        queue.answer(&batch, &[Err(reason.clone())]);
        assert!(answers[0].try_recv().unwrap().is_err(), "b and c have no answer");
        assert_eq!(answers[1].try_recv().unwrap().unwrap()[0], Err(reason));
    }
}
