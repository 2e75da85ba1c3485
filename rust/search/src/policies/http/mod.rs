//! A policy behind a server that speaks OpenAI's protocol, as vLLM and SGLang do.

mod answer;
mod client;
mod error;
mod options;

use std::sync::Arc;

use ebm_http::RequestThread;
use flume::{Receiver, RecvTimeoutError};
use tokio::task::JoinSet;

use self::client::Server;
pub use self::error::HttpPolicyError;
pub use self::options::{HttpApi, HttpPolicyOptions};
use crate::search::{Control, Policy, PolicyError, Proposal, Query};

/// A language model behind a server with OpenAI's endpoints.
///
/// A candidate's log-probability is the sum of the log-probabilities of its tokens, the one that ends
/// it included, as the server reports them. Of equal tactics the largest counts.
///
/// Requests run on one thread, which belongs to the process that made the policy.
#[derive(Debug)]
pub struct HttpPolicy {
    server: Arc<Server>,
    model: Arc<str>,
    thread: RequestThread,
}

impl HttpPolicy {
    /// Asks a server which models it serves, and takes the one asked for, or the only one.
    ///
    /// # Errors
    /// [`PolicyError::Failed`] with an [`HttpPolicyError`]: an option has no meaning, the server does
    /// not answer, or does not serve the model. [`PolicyError::Unavailable`], if it answers 401, 403 or
    /// 404. [`PolicyError::Stopped`].
    pub fn connect(options: HttpPolicyOptions, control: &Control) -> Result<Self, PolicyError> {
        let server = Arc::new(Server::new(options).map_err(failed)?);
        let thread = RequestThread::start("ebm-policy-http")
            .map_err(|error| failed(HttpPolicyError::Start(error.to_string())))?;
        let mut policy = Self { server, model: "".into(), thread };
        let server = Arc::clone(&policy.server);
        let mut found = policy.run([async move { server.find_model().await }], control)?;
        policy.model = found.pop().unwrap_or_default().into();
        Ok(policy)
    }

    /// The model as the server calls it.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Runs requests and waits for all; stops all at the first error.
    fn run<T, R>(
        &self,
        requests: impl IntoIterator<Item = R>,
        control: &Control,
    ) -> Result<Vec<T>, PolicyError>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, HttpPolicyError>> + Send + 'static,
    {
        control.check()?;
        let handle = self.thread.handle().ok_or_else(|| failed(HttpPolicyError::Forked))?;
        let (send, answers) = flume::unbounded();
        // Dropped on every way out, which ends what is under way.
        let mut tasks = JoinSet::new();
        for (index, request) in requests.into_iter().enumerate() {
            let send = send.clone();
            tasks.spawn_on(
                async move {
                    // Nobody listens any more where another request failed.
                    let _ = send.send((index, request.await));
                },
                handle,
            );
        }
        drop(send);
        gather(&answers, tasks.len(), control)
    }
}

/// The answers in the order of their requests.
fn gather<T>(
    answers: &Receiver<(usize, Result<T, HttpPolicyError>)>,
    count: usize,
    control: &Control,
) -> Result<Vec<T>, PolicyError> {
    let mut found: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let mut open = count;
    while open > 0 {
        control.check()?;
        match answers.recv_timeout(control.wait(Control::TICK)) {
            Ok((index, answer)) => {
                found[index] = Some(answer.map_err(failed)?);
                open -= 1;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break, // a request panicked
        }
    }
    let all: Option<Vec<T>> = found.into_iter().collect();
    all.ok_or_else(|| failed(HttpPolicyError::Start("a request ended by a panic".to_owned())))
}

fn failed(error: HttpPolicyError) -> PolicyError {
    let (policy, for_all) = ("http", error.is_for_all());
    let cause = error.into();
    if for_all {
        PolicyError::Unavailable { policy, cause }
    } else {
        PolicyError::Failed { policy, cause }
    }
}

impl Policy for HttpPolicy {
    fn name(&self) -> &'static str {
        "http"
    }

    fn propose(
        &self,
        queries: &[Query<'_>],
        control: &Control,
    ) -> Result<Vec<Proposal>, PolicyError> {
        let requests = queries.iter().map(|query| {
            Arc::clone(&self.server).ask(Arc::clone(&self.model), query.state.to_owned())
        });
        self.run(requests, control)
    }
}
