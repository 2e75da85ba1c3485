//! An encoder behind a server: `ebm-encode serve`, over HTTP.

mod client;
mod error;
mod info;
mod options;
mod reply;

use std::ops::Range;
use std::sync::Arc;

use ebm_cache::Identity;
use ebm_http::reqwest::header::CONTENT_TYPE;
use ebm_http::{Reply, RequestThread};
use tokio::task::JoinSet;

use self::client::{ARROW_STREAM, Client};
pub use self::error::RemoteError;
pub use self::info::RemoteInfo;
pub use self::options::RemoteOptions;
use self::reply::Wrong;
use crate::{Encoder, EncoderResult, NoEmbedding, Report, require_room};

/// What is around the texts of a request, and between two of them.
const FRAME: (&str, &str, &str) = ("{\"texts\":[", ",", "]}");
/// Bytes of an answer beside its embeddings: of the stream, and of each state.
const OVERHEAD: (usize, usize) = (64 << 10, 4 << 10);
/// The server refuses a request of this size.
const TOO_LARGE: u16 = 413;

/// A model behind `ebm-encode serve`.
///
/// Embeddings come as an Arrow stream. Every answer is checked before it is used: its encoder (a server
/// that was restarted with another one is an error), the number of rows, their length, that all values
/// are finite, and that no row is zero or equal to that of a state with other tokens. Calls are split by the limits of the server, and sent again as
/// [`RemoteOptions`] says. After several failures in a row no request is sent for a while, so that a
/// search does not wait for a server that is gone.
///
/// Several threads may share it; put a [`Coalescer`](crate::Coalescer) or a
/// [`CachedEncoder`](crate::CachedEncoder) in front to merge their requests and to check rows across
/// requests. Requests run on one thread, which belongs to the process that connected.
///
/// ```no_run
/// use ebm_encoder::remote::{RemoteEncoder, RemoteOptions};
/// use ebm_encoder::{CachedEncoder, CachedEncoderOptions};
///
/// let options = RemoteOptions::default().with_token_variable("EBM_ENCODE_TOKEN");
/// let encoder = RemoteEncoder::connect("http://127.0.0.1:30001", options)?;
/// let encoder = CachedEncoder::new(encoder, None, CachedEncoderOptions::default())?;
/// for embedding in encoder.encode(&["n : ℕ\n⊢ n + 0 = n", "⊢ True"])? {
///     println!("{:?}", embedding.map(|values| values[0]));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RemoteEncoder {
    client: Arc<Client>,
    info: RemoteInfo,
    thread: RequestThread,
}

impl RemoteEncoder {
    /// Waits until a server is ready, within the retries, and asks what its encoder is.
    ///
    /// # Errors
    /// [`RemoteError`]: an option has no meaning, the server does not answer, is another software, or
    /// has another encoder than the options demand.
    pub fn connect(url: &str, options: RemoteOptions) -> Result<Self, RemoteError> {
        let client = Arc::new(Client::new(url, options)?);
        let thread = RequestThread::start("ebm-remote-encoder")
            .map_err(|error| RemoteError::Start(error.to_string()))?;
        let (send, asked) = flume::bounded(1);
        let asking = Arc::clone(&client);
        let handle = thread.handle().ok_or(RemoteError::Forked)?;
        handle.spawn(async move { send.send(RemoteInfo::ask(&asking).await) });
        // Not `Handle::block_on`, which panics in a thread of another runtime.
        let info = asked.recv().map_err(|_| panicked()).flatten()?;
        Ok(Self { client, info, thread })
    }

    /// What the server said of itself at connect.
    #[must_use]
    pub const fn info(&self) -> &RemoteInfo {
        &self.info
    }

    fn encode(&self, states: &[&str], rows: &mut [f32]) -> Result<Vec<Report>, RemoteError> {
        let texts: Vec<String> =
            states.iter().map(|state| serde_json::Value::from(*state).to_string()).collect();
        let mut reports: Vec<Option<Report>> = vec![None; states.len()];
        let mut parts = self.parts(&texts, &mut reports);
        while !parts.is_empty() {
            parts = self.ask(&texts, &parts, rows, &mut reports)?;
        }
        let all: Option<Vec<Report>> = reports.into_iter().collect();
        all.ok_or_else(panicked)
    }

    /// Cuts states into requests by the server's limits; reports a state that is too long for any.
    fn parts(&self, texts: &[String], reports: &mut [Option<Report>]) -> Vec<Range<usize>> {
        let limits = self.info.limits();
        let most = limits.max_texts.min(limits.queue_texts).min(self.client.options().max_states);
        let room = limits.max_body_bytes.saturating_sub(FRAME.0.len() + FRAME.2.len());
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0;
        for (index, text) in texts.iter().enumerate() {
            if text.len() > room {
                let size = text.len();
                let reason = format!("{size} bytes as JSON, and the server takes {room}");
                reports[index] = Some(Err(NoEmbedding::Failed { reason }));
                continue;
            }
            let with = bytes + FRAME.1.len() + text.len();
            match parts.last_mut().filter(|part| part.end == index) {
                Some(part) if part.len() < most && with <= room => {
                    (part.end, bytes) = (index + 1, with);
                }
                _ => {
                    parts.push(index..index + 1);
                    bytes = text.len();
                }
            }
        }
        parts
    }

    /// Asks for parts of a call; returns those that the server wants smaller.
    fn ask(
        &self,
        texts: &[String],
        parts: &[Range<usize>],
        rows: &mut [f32],
        reports: &mut [Option<Report>],
    ) -> Result<Vec<Range<usize>>, RemoteError> {
        let dim = self.info.dim();
        let handle = self.thread.handle().ok_or(RemoteError::Forked)?;
        // Without room: a request keeps its turn until its answer is taken, so answers do not pile up.
        let (send, answers) = flume::bounded(0);
        // Dropped on every way out, which ends what is under way.
        let mut tasks = JoinSet::new();
        for part in parts {
            let (client, send, part) = (Arc::clone(&self.client), send.clone(), part.clone());
            let body = [FRAME.0, &texts[part.clone()].join(FRAME.1), FRAME.2].concat().into_bytes();
            let most = OVERHEAD.0 + part.len() * (dim * size_of::<f32>() + OVERHEAD.1);
            let asking = async move {
                let _turn = client.turn().await; // the semaphore is never closed
                let answer = client.encode(body, most).await;
                // Nobody listens any more where another request failed.
                let _ = send.send_async((part, answer)).await;
            };
            tasks.spawn_on(asking, handle);
        }
        drop(send);
        let mut smaller = Vec::new();
        for _ in parts {
            let (part, answer) = answers.recv().map_err(|_| panicked())?;
            match answer {
                Ok(reply) => {
                    let rows = &mut rows[part.start * dim..part.end * dim];
                    let found = self.read(reply, &texts[part.clone()], rows)?;
                    for (place, report) in reports[part].iter_mut().zip(found) {
                        *place = Some(report);
                    }
                }
                Err(RemoteError::Status { status: TOO_LARGE, message, .. }) if part.len() == 1 => {
                    let reason = format!("the server refuses it: {message}");
                    reports[part.start] = Some(Err(NoEmbedding::Failed { reason }));
                }
                Err(RemoteError::Status { status: TOO_LARGE, .. }) => {
                    let middle = part.start + part.len() / 2;
                    smaller.extend([part.start..middle, middle..part.end]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(smaller)
    }

    /// Checks an answer, and writes its embeddings.
    fn read(
        &self,
        reply: Reply,
        states: &[String],
        rows: &mut [f32],
    ) -> Result<Vec<Report>, RemoteError> {
        let url = self.client.url("encode");
        self.info.require_same(&reply, &url)?;
        let kind = reply.header(&CONTENT_TYPE);
        if kind.split(';').next().map(str::trim) != Some(ARROW_STREAM) {
            let reason = format!("content type {kind:?}, expected {ARROW_STREAM:?}");
            return Err(RemoteError::Answer { url, reason });
        }
        let (digest, dim) = (self.info.digest(), self.info.dim());
        reply::read(reply.body, digest, dim, states, rows).map_err(|wrong| match wrong {
            Wrong::Answer(reason) => RemoteError::Answer { url, reason },
            Wrong::OtherEncoder(found) => self.info.other(&found, &url),
        })
    }
}

fn panicked() -> RemoteError {
    RemoteError::Start("a request ended by a panic".to_owned())
}

impl Encoder for RemoteEncoder {
    fn dim(&self) -> usize {
        self.info.dim()
    }

    fn identity(&self) -> &Identity {
        self.info.identity()
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        require_room(states.len(), self.dim(), rows.len())?;
        Ok(self.encode(states, rows)?)
    }
}
