//! Connecting to an encoder's server: what it says of itself, options, tokens.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod remote_server;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ebm_encoder::remote::{RemoteEncoder, RemoteError, RemoteOptions};
use remote_server::calls::{connect, described, encode, options, right, serving};
use remote_server::{Reply, Server, info, info_reply, refusal};
use serde_json::{Value, json};
use support::{identity, identity_with};

#[test]
fn connect_waits_until_the_server_is_ready() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |request| match request.path.as_str() {
        "/health" if asked.fetch_add(1, Ordering::SeqCst) < 2 => refusal(503, "loading", ""),
        "/health" => Reply::json(200, &json!({"status": "ready"})),
        "/info" => info_reply(&identity(), &info(&identity())),
        _ => right(request),
    });
    encode(&connect(&server), &["a"]).unwrap();
    let server = Server::start(|_| refusal(503, "loading", ""));
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
