//! An encoder's server that is busy, slow, dying or gone.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod remote_server;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebm_encoder::remote::RemoteEncoder;
use remote_server::calls::{answering, connect, encode, failure, options, right};
use remote_server::{Reply, encodes, refusal};
use support::fake;

#[test]
fn requests_are_sent_again_where_that_may_help() {
    for status in [429, 502, 503, 504] {
        let server = answering(move |number, request| match number {
            0 | 1 => refusal(status, "busy", ""),
            _ => right(request),
        });
        assert_eq!(encode(&connect(&server), &["a"]).unwrap().1, fake().row("a"));
        assert_eq!(encodes(&server).len(), 3);
        let server = answering(move |_, _| refusal(status, "busy", "wait"));
        let error = failure(&server);
        let message = format!("/encode: status {status}: busy (wait) (3 attempts)\nhint: ");
        assert!(error.contains(&message), "{error}");
        assert_eq!(encodes(&server).len(), 3);
    }
    for (status, hint) in
        [(500, "log"), (400, ""), (401, "token"), (404, "serve"), (422, ""), (307, "")]
    {
        let server = answering(move |_, _| refusal(status, "no", ""));
        let error = failure(&server);
        assert!(error.contains(&format!("status {status}: no")) && error.contains(hint), "{error}");
        assert_eq!(encodes(&server).len(), 1, "{status}");
    }
}

#[test]
fn a_server_says_how_long_to_wait() {
    let server = answering(|number, request| match number {
        0 => refusal(429, "full", "").header("retry-after", "1"),
        _ => right(request),
    });
    let encoder = connect(&server);
    let start = Instant::now();
    encode(&encoder, &["a"]).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    let server = answering(|_, _| refusal(429, "full", "").header("retry-after", "3600"));
    let start = Instant::now();
    assert!(failure(&server).contains("status 429: full (1 attempts)"));
    assert_eq!(encodes(&server).len(), 1);
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
        assert_eq!(encodes(&server).len(), 2);
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
    assert_eq!(encodes(&server).len(), 1);
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
    let sent = encodes(&server).len();
    up.store(1, Ordering::SeqCst);
    for _ in 0..20 {
        let error = encode(&encoder, &["a"]).unwrap_err().to_string();
        assert!(error.contains("not asked: its last requests all failed"), "{error}");
    }
    assert_eq!(encodes(&server).len(), sent);
    thread::sleep(wait + Duration::from_millis(100));
    encode(&encoder, &["a"]).unwrap();
    assert_eq!(encodes(&server).len(), sent + 1);
}

#[test]
fn refusals_do_not_count_as_a_server_that_is_gone() {
    let server = answering(|number, request| match number {
        0..8 => refusal([422, 429][number % 2], "no", ""),
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
