//! Answers of an encoder's server, right and wrong, over real sockets.
#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod remote_server;
mod support;

use std::thread;

use ebm_encoder::remote::RemoteEncoder;
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Coalescer, CoalescerOptions, Encoder, EncoderError,
    NoEmbedding,
};
use remote_server::calls::{
    answer, answering, changed, connect, described, encode, failure, options, right, serving,
};
use remote_server::{Answer, Reply, Row, encodes, info, refusal, texts_of, token_digest};
use serde_json::json;
use std::sync::Arc;
use support::{DIM, fake, identity, identity_with};

/// What an answer is spoiled by, and how.
type Spoiled = (&'static str, Box<dyn Fn(&mut Answer) + Send + Sync>);
/// What a reply is changed to, and how.
type Changed = (&'static str, fn(Reply) -> Reply);

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
    let sent = &encodes(&server)[0];
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
    assert_eq!(encodes(&server).len(), 0);
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
        let sent = encodes(&server);
        assert!(sent.iter().all(|request| texts_of(request).len() <= most), "{name}");
        assert!(name != "max_body_bytes" || sent.iter().all(|request| request.body.len() <= limit));
        assert!(sent.len() > 10);
    }
    let server = serving();
    let encoder = RemoteEncoder::connect(&server.url(), options().with_max_states(9)).unwrap();
    assert_eq!(encode(&encoder, &states).unwrap().1, expected);
    assert_eq!(encodes(&server).len(), 12);
}

#[test]
fn a_request_that_is_too_large_is_halved_and_a_state_that_is_too_large_is_reported() {
    let server = answering(|_, request| match texts_of(request) {
        texts if texts.len() > 3 || texts.contains(&"huge".to_owned()) => {
            refusal(413, "too much", "send less")
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
    let cases: [Spoiled; 9] = [
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
    let cases: [Changed; 5] = [
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
    assert_eq!(encodes(&server).len(), 3, "it is not asked again");
}

#[test]
fn a_restart_with_the_same_encoder_is_no_error() {
    let server = answering(|number, request| {
        if number == 0 {
            return Reply::close();
        }
        let mut answer = answer(request);
        answer.instance = "two".to_owned();
        answer.reply()
    });
    let (_, rows) = encode(&connect(&server), &["a"]).unwrap();
    assert_eq!(rows, fake().row("a"));
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
    let server = answering(|_, request| match texts_of(request) {
        // As where one state kills the request that it is in.
        texts if texts.contains(&"poison".to_owned()) => refusal(500, "poisoned", ""),
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
fn zero_and_equal_rows_are_refused_unless_the_tokens_may_be_equal() {
    type Fault = fn(&mut [Row]);
    let cases: [(&str, Fault); 4] = [
        ("row 1: norm 0e0 is zero", |rows| rows[1].embedding = Some(vec![0.0; DIM])),
        ("row 1: equal", |rows| rows[1].embedding = rows[0].embedding.clone()),
        ("", |rows| {
            rows[1].embedding = rows[0].embedding.clone();
            rows[1].digest = rows[0].digest;
        }),
        ("", |rows| {
            // As from the server's cache.
            rows[1].embedding = rows[0].embedding.clone();
            rows[1].digest = None;
        }),
    ];
    for (expected, spoil) in cases {
        let server = answering(move |_, request| {
            let mut answer = answer(request);
            spoil(&mut answer.rows);
            answer.reply()
        });
        let found = encode(&connect(&server), &["a", "b"]);
        let said = found.as_ref().map_or_else(ToString::to_string, |_| String::new());
        assert_eq!(found.is_ok(), expected.is_empty(), "{expected:?}: {said}");
        assert!(said.contains(expected), "{said}, not {expected}");
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
    assert_eq!(encodes(&server).len(), 1, "the cache answers");
}
