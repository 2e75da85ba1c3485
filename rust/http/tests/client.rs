//! Requests that fail, and which of them are sent again.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebm_http::test_util::{Reply, Request, Server};
use ebm_http::{Client, Failure, Options, RequestThread, base_url, bearer};

const MOST: usize = 64;

fn options() -> Options {
    Options::default()
        .with_retries(2, Duration::from_millis(2))
        .with_timeout(Duration::from_secs(20))
}

/// A server that answers by the number of the request.
fn answering(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
    let number = AtomicUsize::new(0);
    Server::start(move |request| answer(number.fetch_add(1, Ordering::SeqCst), request))
}

fn address(given: &str) -> Result<String, String> {
    base_url(given, "http://127.0.0.1:1", "name a file")
}

fn ask(server: &Server, options: Options) -> Result<String, Failure> {
    let client = Client::new(address(&server.url()).unwrap(), None, options).unwrap();
    let thread = RequestThread::start("requests").unwrap();
    let url = client.url("it");
    let asking = client.send(&url, || client.post(&url, "{}"), MOST);
    let reply = thread.handle().unwrap().block_on(asking)?;
    Ok(String::from_utf8(reply.body).unwrap())
}

#[test]
fn a_busy_server_and_a_broken_connection_are_asked_again() {
    for first in [Reply::text(503, "busy"), Reply::close(), Reply::text(200, "yes").cut_in_half()] {
        let server = answering(move |number, _| match number {
            0 | 1 => first.clone(),
            _ => Reply::text(200, "yes"),
        });
        assert_eq!(ask(&server, options()).unwrap(), "yes");
        assert_eq!(server.requests().len(), 3);
        assert!(server.requests().iter().all(|request| request.body == b"{}"));
    }
}

#[test]
fn what_the_server_says_comes_with_the_number_of_attempts() {
    let server = Server::start(|_| Reply::text(503, r#"{"error": {"message": "loading"}}"#));
    let message = "loading (3 attempts)".to_owned();
    assert_eq!(ask(&server, options()).unwrap_err(), Failure::Status { status: 503, message });
    let server = Server::start(|_| Reply::text(400, "no"));
    let refused = Failure::Status { status: 400, message: "no".to_owned() };
    assert_eq!(ask(&server, options()).unwrap_err(), refused);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_slow_answer_is_asked_for_again_only_where_that_is_said() {
    let slow = || Server::start(|_| Reply::text(200, "yes").after(Duration::from_secs(2)));
    let limit = Duration::from_millis(50);
    let (server, options) = (slow(), options().with_timeout(limit));
    assert_eq!(ask(&server, options.clone()).unwrap_err(), Failure::TimedOut { limit });
    assert_eq!(server.requests().len(), 1);
    let server = slow();
    let failure = ask(&server, options.with_retries_of_timeouts()).unwrap_err();
    assert!(matches!(failure, Failure::Unreachable { attempts: 3, .. }), "{failure:?}");
}

#[test]
fn an_answer_has_a_limit() {
    let server = Server::start(|_| Reply::text(200, &"x".repeat(MOST)));
    assert_eq!(ask(&server, options()).unwrap().len(), MOST);
    let server = Server::start(|_| Reply::text(200, &"x".repeat(MOST + 1)));
    assert_eq!(ask(&server, options()).unwrap_err(), Failure::TooLarge { most: MOST });
    // Of an error the beginning is enough.
    let server = Server::start(|_| Reply::text(400, &"x".repeat(3 << 20)));
    let message = "x".repeat(500);
    assert_eq!(ask(&server, options()).unwrap_err(), Failure::Status { status: 400, message });
}

#[test]
fn addresses_and_tokens_that_cannot_be_used_are_refused() {
    assert_eq!(address("http://127.0.0.1:8000/a/").unwrap(), "http://127.0.0.1:8000/a");
    for given in [
        "",
        "127.0.0.1",
        "ftp://a",
        "http://u:p@a",
        "http://u:p@a:99999",
        "http://a/?b",
        "http://a/#b",
    ] {
        let reason = address(given).unwrap_err();
        assert!(!reason.contains("u:p"), "{reason}");
    }
    assert!(address("a").unwrap_err().ends_with("hint: such as http://127.0.0.1:1"));
    assert!(address("http://u@a").unwrap_err().ends_with("hint: name a file"));
    assert_eq!(bearer(" t \n").unwrap(), "Bearer t");
    assert!(bearer("t").unwrap().is_sensitive());
    assert_eq!(bearer(" ").unwrap_err(), "is empty");
    assert!(bearer("a\nb").unwrap_err().contains("no header"));
}
