//! Clients of a server, and servers that answer requests as told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebm_encoder::remote::{RemoteEncoder, RemoteOptions};
use ebm_encoder::{Encoder, EncoderError, Report};
use serde_json::{Value, json};

use super::{Answer, Reply, Request, Server, info, info_reply, texts_of};
use crate::support::{DIM, fake, identity};

pub fn options() -> RemoteOptions {
    RemoteOptions::default()
        .with_retries(2, Duration::from_millis(5))
        .with_timeout(Duration::from_secs(20))
        .with_breaker(1000, Duration::from_secs(60))
}

/// A server that gives each request for embeddings to a function, with its number among them.
pub fn answering(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
    described(info(&identity()), answer)
}

pub fn described(
    said: Value,
    answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
) -> Server {
    let number = AtomicUsize::new(0);
    Server::start(move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/health") => Reply::json(200, &json!({"status": "ready"})),
        ("GET", "/info") => info_reply(&identity(), &said),
        ("POST", "/encode") => answer(number.fetch_add(1, Ordering::SeqCst), request),
        other => unreachable!("{other:?}"),
    })
}

pub fn right(request: &Request) -> Reply {
    answer(request).reply()
}

pub fn answer(request: &Request) -> Answer {
    Answer::of(&fake(), &texts_of(request))
}

pub fn serving() -> Server {
    answering(|_, request| right(request))
}

pub fn connect(server: &Server) -> RemoteEncoder {
    RemoteEncoder::connect(&server.url(), options()).unwrap()
}

pub fn encode(
    encoder: &impl Encoder,
    states: &[&str],
) -> Result<(Vec<Report>, Vec<f32>), EncoderError> {
    let mut rows = vec![7.0; states.len() * DIM];
    let reports = encoder.encode_into(states, &mut rows)?;
    Ok((reports, rows))
}

/// The message of an error about two states.
pub fn failure(server: &Server) -> String {
    encode(&connect(server), &["a", "b"]).unwrap_err().to_string()
}

/// The message of an error where the right answer is changed.
pub fn changed(change: impl Fn(&mut Answer) + Send + Sync + 'static) -> String {
    failure(&answering(move |_, request| {
        let mut answer = answer(request);
        change(&mut answer);
        answer.reply()
    }))
}
