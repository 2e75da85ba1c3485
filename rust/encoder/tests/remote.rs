//! An encoder's server, over real sockets, in good and in bad weather.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod remote_server;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebm_encoder::remote::{RemoteEncoder, RemoteError, RemoteOptions};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Coalescer, CoalescerOptions, Encoder, EncoderError,
    NoEmbedding, Report,
};
use proptest::prelude::*;
use remote_server::{Answer, Reply, Request, Row, Server, info, info_reply, token_digest};
use serde_json::{Value, json};
use support::{DIM, fake, identity, identity_with};

fn options() -> RemoteOptions {
    RemoteOptions::default()
        .with_retries(2, Duration::from_millis(5))
        .with_timeout(Duration::from_secs(20))
        .with_breaker(1000, Duration::from_secs(60))
}

/// A server that gives each request for embeddings to a function, with its number among them.
fn answering(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
    described(info(&identity()), answer)
}

fn described(
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

fn right(request: &Request) -> Reply {
    answer(request).reply()
}

fn answer(request: &Request) -> Answer {
    Answer::of(&fake(), &request.texts())
}

fn serving() -> Server {
    answering(|_, request| right(request))
}

fn connect(server: &Server) -> RemoteEncoder {
    RemoteEncoder::connect(&server.url(), options()).unwrap()
}

fn encode(
    encoder: &impl Encoder,
    states: &[&str],
) -> Result<(Vec<Report>, Vec<f32>), EncoderError> {
    let mut rows = vec![7.0; states.len() * DIM];
    let reports = encoder.encode_into(states, &mut rows)?;
    Ok((reports, rows))
}

/// The message of an error about two states.
fn failure(server: &Server) -> String {
    encode(&connect(server), &["a", "b"]).unwrap_err().to_string()
}

/// The message of an error where the right answer is changed.
fn changed(change: impl Fn(&mut Answer) + Send + Sync + 'static) -> String {
    failure(&answering(move |_, request| {
        let mut answer = answer(request);
        change(&mut answer);
        answer.reply()
    }))
}

#[test]
fn embeddings_lengths_and_digests_are_those_of_the_server() {
    let server = serving();
    let encoder = connect(&server);
    let states =
        ["⊢ a \"quoted\"\n\u{1}", "n : ℕ\n⊢ n = n", "cut here", "bad", "long", "", "a\\b", "𝔸"];
    let (reports, rows) = encode(&encoder, &states).unwrap();
    for (index, state) in states.into_iter().enumerate() {
        let row = &rows[index * DIM..][..DIM];
        match (&reports[index], state) {
            (Err(NoEmbedding::Bad { reason }), "bad") => assert_eq!(reason, "norm 0e0 is zero"),
            (Err(NoEmbedding::TooLong { tokens: 5000 }), "long") => {}
            (Ok(prompt), _) => {
                assert_eq!(row, fake().row(state), "{state:?}");
                assert_eq!(prompt.tokens, state.len());
                assert_eq!(prompt.truncated, state.contains("cut"));
                assert_eq!(prompt.digest, Some(token_digest(state)));
                continue;
            }
            other => unreachable!("{other:?}"),
        }
        assert!(row.iter().all(|value| value.is_nan()), "{state:?} has no embedding");
    }
    assert_eq!((encoder.dim(), encoder.identity()), (DIM, &identity()));
    assert_eq!(encoder.info().version(), "0.1.0");
    assert_eq!(encoder.info().instance(), "one");
    assert_eq!(encoder.info().described()["engine"], "padded");
    let sent = &server.encodes()[0];
    assert_eq!(sent.headers["accept"], "application/vnd.apache.arrow.stream");
    assert_eq!(sent.headers["content-type"], "application/json");
    assert!(!sent.headers.contains_key("authorization"));
}

#[test]
fn no_state_is_no_request_and_a_wrong_buffer_is_refused() {
    let server = serving();
    let encoder = connect(&server);
    assert_eq!(encoder.encode_into(&[], &mut []).unwrap(), []);
    let error = encoder.encode_into(&["a"], &mut [0.0; DIM + 1]).unwrap_err();
    assert!(matches!(error, EncoderError::Argument(_)), "{error}");
    assert_eq!(server.encodes().len(), 0);
}

#[test]
fn calls_are_split_by_the_limits_of_the_server() {
    let states: Vec<String> = (0..100).map(|i| format!("{i} {}", "x".repeat(i % 13))).collect();
    let states: Vec<&str> = states.iter().map(String::as_str).collect();
    let expected: Vec<f32> = states.iter().flat_map(|state| fake().row(state)).collect();
    for (name, limit, most) in
        [("max_texts", 7, 7), ("queue_texts", 5, 5), ("max_body_bytes", 90, 100)]
    {
        let mut said = info(&identity());
        said["limits"][name] = json!(limit);
        let server = described(said, |_, request| right(request));
        let (reports, rows) = encode(&connect(&server), &states).unwrap();
        assert!(reports.iter().all(Result::is_ok));
        assert_eq!(rows, expected, "{name}");
        let sent = server.encodes();
        assert!(sent.iter().all(|request| request.texts().len() <= most), "{name}");
        assert!(name != "max_body_bytes" || sent.iter().all(|request| request.body.len() <= limit));
        assert!(sent.len() > 10);
    }
    let server = serving();
    let encoder = RemoteEncoder::connect(&server.url(), options().with_max_states(9)).unwrap();
    assert_eq!(encode(&encoder, &states).unwrap().1, expected);
    assert_eq!(server.encodes().len(), 12);
}

#[test]
fn a_request_that_is_too_large_is_halved_and_a_state_that_is_too_large_is_reported() {
    let server = answering(|_, request| match request.texts() {
        texts if texts.len() > 3 || texts.contains(&"huge".to_owned()) => {
            Reply::error(413, "too much", "send less")
        }
        _ => right(request),
    });
    let states = ["a", "b", "c", "huge", "e", "f", "g", "h"];
    let (reports, rows) = encode(&connect(&server), &states).unwrap();
    for (index, state) in states.into_iter().enumerate() {
        if state == "huge" {
            let error = reports[index].as_ref().unwrap_err().to_string();
            assert_eq!(error, "the server refuses it: too much (send less)");
        } else {
            assert!(reports[index].is_ok());
            assert_eq!(&rows[index * DIM..][..DIM], fake().row(state));
        }
    }
    let mut said = info(&identity());
    said["limits"]["max_body_bytes"] = json!(60);
    let server = described(said, |_, request| right(request));
    let long = "x".repeat(60);
    let (reports, _) = encode(&connect(&server), &["a", &long, "b"]).unwrap();
    assert!(reports[0].is_ok() && reports[2].is_ok());
    let error = reports[1].as_ref().unwrap_err().to_string();
    assert_eq!(error, "62 bytes as JSON, and the server takes 48");
}

#[test]
fn wrong_answers_are_errors() {
    let row = Row {
        status: "ok".to_owned(),
        tokens: 1,
        truncated: false,
        digest: None,
        reason: String::new(),
        embedding: Some(vec![1.0; DIM]),
    };
    let cases: [(&str, Box<dyn Fn(&mut Answer) + Send + Sync>); 9] = [
        ("1 rows, and 2 were asked for", Box::new(|answer| answer.rows.truncate(1))),
        ("0 rows, and 2 were asked for", Box::new(|answer| answer.rows.clear())),
        ("3 rows, and 2 were asked for", Box::new(move |answer| answer.rows.push(row.clone()))),
        (
            "embeddings of 9 values, expected 8",
            Box::new(|answer| {
                answer.dim = DIM + 1;
                answer.rows.iter_mut().for_each(|row| row.embedding = Some(vec![1.0; DIM + 1]));
            }),
        ),
        (
            "row 1: status \"ok\" with values that are not finite",
            Box::new(|answer| {
                answer.rows[1].embedding.as_mut().unwrap()[3] = f32::NAN;
            }),
        ),
        (
            "row 0: status \"ok\" with values that are not finite",
            Box::new(|answer| {
                answer.rows[0].embedding.as_mut().unwrap()[7] = f32::NEG_INFINITY;
            }),
        ),
        (
            "row 0: status \"ok\" without an embedding",
            Box::new(|answer| {
                answer.rows[0].embedding = None;
            }),
        ),
        (
            "row 1: status \"bad\" with an embedding",
            Box::new(|answer| {
                answer.rows[1].status = "bad".to_owned();
            }),
        ),
        ("row 1: status \"\" with an embedding", Box::new(|answer| answer.rows[1].status.clear())),
    ];
    for (expected, change) in cases {
        let found = changed(change);
        assert!(found.contains("/encode: a wrong answer: "), "{found}");
        assert!(found.contains(expected) && found.contains("\nhint: "), "{found}, not {expected}");
    }
}

#[test]
fn what_is_around_the_rows_is_checked_too() {
    let cases: [(&str, fn(Reply) -> Reply); 5] = [
        ("without a header ebm-identity", |reply| reply.without("ebm-identity")),
        ("content type \"text/html\"", |reply| reply.header("content-type", "text/html")),
        ("content type \"\"", |reply| reply.without("content-type")),
        ("without its end", |mut reply| {
            reply.body.truncate(reply.body.len() - 8);
            reply
        }),
        ("no Arrow stream", |mut reply| {
            let middle = reply.body.len() / 2;
            reply.body.drain(middle..middle + 64);
            reply
        }),
    ];
    for (expected, change) in cases {
        let found = failure(&answering(move |_, request| change(right(request))));
        assert!(found.contains(expected), "{found}, not {expected}");
    }
    let found = failure(&answering(|_, _| Reply::json(200, &json!([])).header("ebm-identity", "")));
    assert!(found.contains("without a header ebm-identity"), "{found}");
}

#[test]
fn another_encoder_after_a_restart_is_an_error_that_says_so() {
    let other = identity_with("bfloat16").digest();
    let expected = identity().digest();
    let server = answering({
        let other = other.clone();
        move |number, request| match number {
            0 => right(request),
            1 => right(request).header("ebm-identity", &other),
            _ => {
                let mut answer = answer(request);
                answer.identity.clone_from(&other);
                answer.reply().header("ebm-identity", &identity().digest())
            }
        }
    });
    let encoder = connect(&server);
    encode(&encoder, &["a"]).unwrap();
    for place in ["header", "schema"] {
        let error = encode(&encoder, &["a"]).unwrap_err().to_string();
        let message = format!("has another encoder: its identity is {other}, expected {expected}");
        assert!(error.contains(&message) && error.contains("\nhint: "), "{place}: {error}");
    }
    assert_eq!(server.encodes().len(), 3, "it is not asked again");
}

#[test]
fn a_restart_with_the_same_encoder_is_no_error() {
    let server = answering(|number, request| match number {
        0 => Reply::close(),
        _ => {
            let mut answer = answer(request);
            answer.instance = "two".to_owned();
            answer.reply()
        }
    });
    let (_, rows) = encode(&connect(&server), &["a"]).unwrap();
    assert_eq!(rows, fake().row("a"));
}

#[test]
fn requests_are_sent_again_where_that_may_help() {
    for status in [429, 502, 503, 504] {
        let server = answering(move |number, request| match number {
            0 | 1 => Reply::error(status, "busy", ""),
            _ => right(request),
        });
        assert_eq!(encode(&connect(&server), &["a"]).unwrap().1, fake().row("a"));
        assert_eq!(server.encodes().len(), 3);
        let server = answering(move |_, _| Reply::error(status, "busy", "wait"));
        let error = failure(&server);
        let message = format!("/encode: status {status}: busy (wait) (3 attempts)\nhint: ");
        assert!(error.contains(&message), "{error}");
        assert_eq!(server.encodes().len(), 3);
    }
    for (status, hint) in
        [(500, "log"), (400, ""), (401, "token"), (404, "serve"), (422, ""), (307, "")]
    {
        let server = answering(move |_, _| Reply::error(status, "no", ""));
        let error = failure(&server);
        assert!(error.contains(&format!("status {status}: no")) && error.contains(hint), "{error}");
        assert_eq!(server.encodes().len(), 1, "{status}");
    }
}

#[test]
fn a_server_says_how_long_to_wait() {
    let server = answering(|number, request| match number {
        0 => Reply::error(429, "full", "").header("retry-after", "1"),
        _ => right(request),
    });
    let encoder = connect(&server);
    let start = Instant::now();
    encode(&encoder, &["a"]).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let server = answering(|_, _| Reply::error(429, "full", "").header("retry-after", "3600"));
    let start = Instant::now();
    assert!(failure(&server).contains("status 429: full (1 attempts)"));
    assert!(start.elapsed() < Duration::from_secs(60), "an hour is too long");
}

#[test]
fn a_server_that_dies_in_an_answer_is_asked_again() {
    for bytes in [0, 1, 300, 900] {
        let server = answering(move |number, request| match number {
            0 => right(request).dying_after(bytes),
            _ => right(request),
        });
        let (_, rows) = encode(&connect(&server), &["a", "b"]).unwrap();
        assert_eq!(rows, [fake().row("a"), fake().row("b")].concat());
        assert_eq!(server.encodes().len(), 2);
        let error = failure(&answering(move |_, request| right(request).dying_after(bytes)));
        assert!(
            error.contains("the connection broke: ") && error.contains("(3 attempts)"),
            "{error}"
        );
    }
    assert!(failure(&answering(|_, _| Reply::close())).contains("the connection broke: "));
}

#[test]
fn a_hanging_server_is_left_after_the_time_limit_and_not_asked_again() {
    let server = answering(|_, request| right(request).after(Duration::from_secs(3)));
    let options = options().with_timeout(Duration::from_millis(300));
    let encoder = RemoteEncoder::connect(&server.url(), options).unwrap();
    let start = Instant::now();
    let error = encode(&encoder, &["a"]).unwrap_err().to_string();
    assert!(error.contains("no whole answer within 300ms\nhint: "), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(server.encodes().len(), 1);
}

#[test]
fn an_answer_that_is_too_large_is_not_read_to_its_end() {
    let error = failure(&answering(|_, request| {
        let mut reply = right(request);
        reply.body.resize(64 << 20, 0);
        reply
    }));
    assert!(error.contains("a wrong answer: more than the "), "{error}");
}

#[test]
fn a_server_that_is_gone_is_left_alone_for_a_while() {
    let up = Arc::new(AtomicUsize::new(1));
    let known = Arc::clone(&up);
    let server = answering(move |_, request| match known.load(Ordering::SeqCst) {
        0 => Reply::close(),
        _ => right(request),
    });
    let wait = Duration::from_millis(1500);
    let options = options().with_retries(0, Duration::ZERO).with_breaker(2, wait);
    let encoder = RemoteEncoder::connect(&server.url(), options).unwrap();
    encode(&encoder, &["a"]).unwrap();
    up.store(0, Ordering::SeqCst);
    for _ in 0..2 {
        let error = encode(&encoder, &["a"]).unwrap_err().to_string();
        assert!(error.contains("the connection broke"), "{error}");
    }
    let sent = server.encodes().len();
    up.store(1, Ordering::SeqCst);
    for _ in 0..20 {
        let error = encode(&encoder, &["a"]).unwrap_err().to_string();
        assert!(error.contains("not asked: its last requests all failed"), "{error}");
    }
    assert_eq!(server.encodes().len(), sent);
    thread::sleep(wait + Duration::from_millis(100));
    encode(&encoder, &["a"]).unwrap();
    assert_eq!(server.encodes().len(), sent + 1);
}

#[test]
fn refusals_do_not_count_as_a_server_that_is_gone() {
    let server = answering(|number, request| match number {
        0..8 => Reply::error([422, 429][number % 2], "no", ""),
        _ => right(request),
    });
    let options =
        options().with_retries(0, Duration::ZERO).with_breaker(2, Duration::from_secs(60));
    let encoder = RemoteEncoder::connect(&server.url(), options).unwrap();
    for _ in 0..8 {
        encode(&encoder, &["a"]).unwrap_err();
    }
    encode(&encoder, &["a"]).unwrap();
}

#[test]
fn connect_waits_until_the_server_is_ready() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.path.as_str() {
        "/health" if asked.fetch_add(1, Ordering::SeqCst) < 2 => Reply::error(503, "loading", ""),
        "/health" => Reply::json(200, &json!({"status": "ready"})),
        "/info" => info_reply(&identity(), &info(&identity())),
        _ => right(request),
    });
    encode(&connect(&server), &["a"]).unwrap();
    let server = Server::start(|_| Reply::error(503, "loading", ""));
    let error = RemoteEncoder::connect(&server.url(), options()).unwrap_err();
    let RemoteError::Status { status: 503, message, url } = error else { unreachable!("{error}") };
    assert_eq!(message, "loading (3 attempts)");
    assert_eq!(url, format!("{}/health", server.url()));
}

fn connected(said: Value) -> Result<RemoteEncoder, RemoteError> {
    let server = described(said, |_, request| right(request));
    RemoteEncoder::connect(&server.url(), options())
}

#[test]
fn what_a_server_says_of_itself_is_checked() {
    let with = |pointer: &str, value: Value| {
        let mut said = info(&identity());
        *said.pointer_mut(pointer).unwrap() = value;
        connected(said).unwrap_err().to_string()
    };
    assert!(with("/software", json!("vllm")).contains("is not ebm-encode: `software` is"));
    assert!(with("/identity_digest", json!("00")).contains("it says \"00\""));
    assert!(with("/identity/dtype", json!("float16")).contains("its identity has digest"));
    assert!(with("/identity", json!({})).contains("not an encoder identity: missing field"));
    for (place, value) in [
        ("/dim", json!(0)),
        ("/dim", json!(1_u64 << 40)),
        ("/dim", json!(-8)),
        ("/limits/max_texts", json!(0)),
        ("/limits/max_body_bytes", json!("1")),
        ("/limits/queue_texts", json!(null)),
        ("/version", json!(1)),
    ] {
        assert!(with(place, value).contains("/info: a wrong answer: "), "{place}");
    }
    let garbage = Server::start(|_| Reply::new(200, "text/html", b"<html>".to_vec()));
    let error = RemoteEncoder::connect(&garbage.url(), options()).unwrap_err().to_string();
    assert!(error.contains("is not ebm-encode") && error.contains("\nhint: "), "{error}");
    let other = Server::start(|request| match request.path.as_str() {
        "/health" => Reply::new(200, "text/plain", Vec::new()),
        _ => Reply::json(404, &json!({"detail": "Not Found"})),
    });
    let error = RemoteEncoder::connect(&other.url(), options()).unwrap_err().to_string();
    assert!(error.contains("/info: status 404") && error.contains("ebm-encode serve"), "{error}");
}

#[test]
fn an_identity_may_be_demanded() {
    let server = serving();
    let connect = |wanted| {
        let options = options().with_identity(wanted);
        RemoteEncoder::connect(&server.url(), options)
    };
    connect(identity()).unwrap();
    let error = connect(identity_with("float16")).unwrap_err();
    let RemoteError::OtherEncoder { expected, found, differs, .. } = &error else {
        unreachable!("{error}")
    };
    assert_eq!([expected, found], [&identity_with("float16").digest(), &identity().digest()]);
    assert_eq!(differs.len(), 1);
    assert!(differs[0].starts_with("dtype (float16 here, float32 there"), "{differs:?}");
}

#[test]
fn nobody_listening_is_said() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = RemoteEncoder::connect(&format!("http://{address}"), options()).unwrap_err();
    let RemoteError::Unreachable { attempts: 3, reason, .. } = error else {
        unreachable!("{error}")
    };
    assert!(reason.starts_with("no connection: "), "{reason}");
}

#[test]
fn options_without_meaning_are_refused() {
    let refused = |url: &str, options: RemoteOptions| {
        RemoteEncoder::connect(url, options).unwrap_err().to_string()
    };
    for url in
        ["", "localhost:80", "ftp://a", "http://", "http://a/?x", "http://a/#x", "http://u:p@a"]
    {
        let error = refused(url, options());
        assert!(error.starts_with("`url`: ") && !error.contains("u:p"), "{error}");
    }
    let url = "http://127.0.0.1:9";
    assert!(refused(url, options().with_timeout(Duration::ZERO)).starts_with("`timeout`"));
    assert!(refused(url, options().with_max_states(0)).starts_with("`max_states`"));
    assert!(refused(url, options().with_max_concurrent(0)).starts_with("`max_concurrent`"));
    let none = options().with_breaker(0, Duration::ZERO);
    assert!(refused(url, none).starts_with("`breaker_failures`: is 0, expected 1"));
}

#[test]
fn a_token_is_sent_and_never_shown() {
    let server = serving();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, " s3cret-t0ken\n").unwrap();
    for options in [options().with_token("s3cret-t0ken"), options().with_token_file(&file)] {
        assert!(!format!("{options:?}").contains("s3cret"), "{options:?}");
        let encoder = RemoteEncoder::connect(&server.url(), options).unwrap();
        encode(&encoder, &["a"]).unwrap();
        let shown = format!("{encoder:?}");
        assert!(!shown.contains("s3cret") && shown.contains("Sensitive"), "{shown}");
    }
    let requests = server.requests();
    assert!(requests.len() == 6, "{}", requests.len());
    assert!(
        requests.iter().all(|request| request.headers["authorization"] == "Bearer s3cret-t0ken")
    );
    for (content, reason) in [(" \n", "is empty"), ("s3cret\u{7}x", "characters that no header")] {
        std::fs::write(&file, content).unwrap();
        let options = options().with_token_file(&file);
        let error = RemoteEncoder::connect(&server.url(), options).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains("s3cret"), "{error}");
    }
    let options = options().with_token_variable("EBM_ENCODE_NO_SUCH_TOKEN");
    let error = RemoteEncoder::connect(&server.url(), options).unwrap_err().to_string();
    assert!(error.contains("environment variable EBM_ENCODE_NO_SUCH_TOKEN: is not set"), "{error}");
}

#[test]
fn threads_share_it_and_get_their_own_embeddings() {
    let server = serving();
    let encoder = connect(&server);
    thread::scope(|scope| {
        for thread in 0..8 {
            let encoder = &encoder;
            scope.spawn(move || {
                for round in 0..10 {
                    let states: Vec<String> =
                        (0..20).map(|i| format!("{thread} {round} {i}")).collect();
                    let states: Vec<&str> = states.iter().map(String::as_str).collect();
                    let (reports, rows) = encode(encoder, &states).unwrap();
                    assert!(reports.iter().all(Result::is_ok));
                    for (state, row) in states.iter().zip(rows.chunks(DIM)) {
                        assert_eq!(row, fake().row(state));
                    }
                }
            });
        }
    });
}

#[test]
fn it_may_be_made_used_and_dropped_within_a_runtime() {
    let server = serving();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let url = server.url();
    runtime.block_on(async move {
        let encoder = RemoteEncoder::connect(&url, options()).unwrap();
        assert_eq!(encode(&encoder, &["a"]).unwrap().1, fake().row("a"));
    });
}

#[test]
fn it_works_behind_a_coalescer() {
    let server = answering(|_, request| match request.texts() {
        // As where one state kills the request that it is in.
        texts if texts.contains(&"poison".to_owned()) => Reply::error(500, "poisoned", ""),
        _ => right(request),
    });
    let coalescer = Coalescer::start(connect(&server), CoalescerOptions::default()).unwrap();
    let states = ["a", "poison", "b", "bad", "a"];
    let answers = coalescer.submit(states.map(Arc::from)).unwrap().wait().unwrap();
    for index in [0, 2, 4] {
        assert_eq!(**answers[index].as_ref().unwrap(), fake().row(states[index]));
    }
    assert!(answers[1].as_ref().unwrap_err().to_string().contains("status 500: poisoned"));
    assert!(matches!(answers[3], Err(NoEmbedding::Bad { .. })));
}

#[test]
fn rows_of_other_states_with_the_right_count_are_caught_behind_a_coalescer() {
    let server = answering(|number, request| {
        let mut answer = answer(request);
        if number == 0 {
            answer.rows[1].embedding = answer.rows[0].embedding.clone();
        }
        answer.reply()
    });
    let coalescer = Coalescer::start(connect(&server), CoalescerOptions::default()).unwrap();
    let answers = coalescer.submit(["a", "b", "c"].map(Arc::from)).unwrap().wait().unwrap();
    for (answer, state) in answers.into_iter().zip(["a", "b", "c"]) {
        assert_eq!(*answer.unwrap(), *fake().row(state), "re-encoded at batch size 1");
    }
}

#[test]
fn it_fills_a_cache_of_its_identity() {
    let server = serving();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("c.parquet");
    let options = CachedEncoderOptions::default().with_append_to(&output);
    let encoder = CachedEncoder::new(connect(&server), None, options.clone()).unwrap();
    for embedding in encoder.encode(&["a", "b", "a"]).unwrap() {
        embedding.unwrap();
    }
    encoder.finish(json!({"made_by": "a test"})).unwrap();
    let cache = ebm_cache::Cache::open(&output, ebm_cache::OpenMode::Auto).unwrap();
    assert_eq!(cache.identity(), Some(&identity()));
    let encoder =
        CachedEncoder::new(connect(&server), Some(cache), CachedEncoderOptions::default());
    let encoder = encoder.unwrap();
    let answers = encoder.encode(&["b"]).unwrap();
    assert_eq!(**answers[0].as_ref().unwrap(), fake().row("b"));
    assert_eq!(server.encodes().len(), 1, "the cache answers");
}

/// What a client makes of some bytes, for two states.
fn given(body: Vec<u8>) -> Result<(Vec<Report>, Vec<f32>), EncoderError> {
    let server = answering(move |_, request| right(request).with_body(&body));
    encode(&connect(&server), &["a", "b"])
}

fn body() -> Vec<u8> {
    Answer::of(&fake(), &["a".to_owned(), "b".to_owned()]).body()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000), ended: bool) {
        let end: &[u8] = if ended { &[255, 255, 255, 255, 0, 0, 0, 0] } else { &[] };
        let error = given([&bytes, end].concat()).unwrap_err().to_string();
        prop_assert!(error.contains("a wrong answer: "), "{}", error);
    }

    #[test]
    fn a_cut_answer_is_an_error(length in 0..body().len(), ended: bool) {
        let mut bytes = body();
        bytes.truncate(length);
        if ended {
            bytes.extend([255, 255, 255, 255, 0, 0, 0, 0]);
        }
        // Only where what is missing is the end that was put back.
        if let Ok((_, rows)) = given(bytes) {
            prop_assert!(ended && length + 8 >= body().len());
            prop_assert_eq!(rows, [fake().row("a"), fake().row("b")].concat());
        }
    }

    #[test]
    fn changed_bytes_give_an_error_or_whole_rows(
        changes in proptest::collection::vec((0..body().len(), any::<u8>()), 1..6)
    ) {
        let mut bytes = body();
        for (place, value) in changes {
            bytes[place] = value;
        }
        if let Ok((reports, rows)) = given(bytes) {
            prop_assert_eq!(reports.len(), 2);
            for (report, row) in reports.iter().zip(rows.chunks(DIM)) {
                prop_assert!(row.iter().all(|value| value.is_finite() == report.is_ok()));
            }
        }
    }
}
