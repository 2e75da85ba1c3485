//! How long a caller waits: without end, for a time, or until it is told to stop.

use std::time::{Duration, Instant};

use crate::{EncoderError, EncoderResult};

/// How often a caller that can be stopped looks whether it is.
const SLICE: Duration = Duration::from_millis(100);

/// A caller's patience.
pub(crate) struct Patience<'a> {
    end: Option<(Instant, Duration)>,
    stop: Option<&'a mut (dyn FnMut() -> bool + Send)>,
}

impl<'a> Patience<'a> {
    pub(crate) const fn without_end() -> Self {
        Self { end: None, stop: None }
    }

    /// Until a time has passed since `start`, if one is given.
    pub(crate) fn within(start: Instant, time: Option<Duration>) -> Self {
        // A time beyond what a clock can say is no limit.
        let end = time.and_then(|time| Some((start.checked_add(time)?, time)));
        Self { end, stop: None }
    }

    /// Also until `stop` returns true; it is called about ten times a second.
    pub(crate) fn stopped_by(self, stop: &'a mut (dyn FnMut() -> bool + Send)) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Waits for room in a queue.
    pub(crate) fn send<T>(&mut self, queue: &flume::Sender<T>, item: T) -> EncoderResult<()> {
        let mut item = item;
        loop {
            let Some(until) = self.next_look() else {
                return queue.send(item).map_err(|_| EncoderError::Closed);
            };
            match queue.send_deadline(item, until) {
                Ok(()) => return Ok(()),
                Err(flume::SendTimeoutError::Disconnected(_)) => return Err(EncoderError::Closed),
                Err(flume::SendTimeoutError::Timeout(back)) => item = back,
            }
            self.require_more()?;
        }
    }

    /// Waits for an answer.
    pub(crate) fn receive<T>(&mut self, answers: &flume::Receiver<T>) -> EncoderResult<T> {
        loop {
            let Some(until) = self.next_look() else {
                return answers.recv().map_err(|_| EncoderError::Closed);
            };
            match answers.recv_deadline(until) {
                Ok(answer) => return Ok(answer),
                Err(flume::RecvTimeoutError::Disconnected) => return Err(EncoderError::Closed),
                Err(flume::RecvTimeoutError::Timeout) => self.require_more()?,
            }
        }
    }

    /// Until when to wait before something has to be looked at; `None`: without end.
    fn next_look(&self) -> Option<Instant> {
        let slice = self.stop.as_ref().map(|_| Instant::now() + SLICE);
        let end = self.end.map(|(end, _)| end);
        slice.into_iter().chain(end).min()
    }

    fn require_more(&mut self) -> EncoderResult<()> {
        if let Some((_, time)) = self.end.filter(|(end, _)| Instant::now() >= *end) {
            return Err(EncoderError::TimedOut(time));
        }
        if self.stop.as_mut().is_some_and(|stop| stop()) {
            return Err(EncoderError::Interrupted);
        }
        Ok(())
    }
}
