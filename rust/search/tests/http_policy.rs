//! A policy server as vLLM and SGLang answer, over real sockets, in good and in bad weather.
#![cfg(feature = "http-policy")]
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod policy_server;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use ebm_search::policies::{HttpApi, HttpPolicy, HttpPolicyError, HttpPolicyOptions};
use ebm_search::search::{Cancel, Control, Policy, PolicyError, Proposal, Query, Stop};
use policy_server::{Reply, Request, Server, chat, choice, completion, models};
use serde_json::{Value, json};

fn options(server: &Server) -> HttpPolicyOptions {
    HttpPolicyOptions::new(server.url())
        .with_samples(2)
        .with_retries(2, Duration::from_millis(5))
        .with_timeout(Duration::from_secs(20))
}

fn connect(options: HttpPolicyOptions) -> Result<HttpPolicy, PolicyError> {
    HttpPolicy::connect(options, &Control::default())
}

fn propose(policy: &HttpPolicy, states: &[&str]) -> Result<Vec<Proposal>, PolicyError> {
    let queries: Vec<Query<'_>> = states.iter().map(|state| Query::new("t", state)).collect();
    policy.propose(&queries, &Control::default())
}

/// The candidates of one state.
fn candidates(policy: &HttpPolicy) -> Vec<(String, f64)> {
    let proposal = propose(policy, &["⊢ True"]).unwrap().remove(0).unwrap();
    proposal.into_iter().map(|found| (found.tactic.to_string(), found.log_prob)).collect()
}

fn no_candidates(policy: &HttpPolicy) -> String {
    propose(policy, &["⊢ True"]).unwrap().remove(0).unwrap_err().0
}

fn cause(error: PolicyError) -> HttpPolicyError {
    let (PolicyError::Failed { policy: "http", cause }
    | PolicyError::Unavailable { policy: "http", cause }) = error
    else {
        unreachable!("{error:?}")
    };
    *cause.downcast().unwrap()
}

/// A server that answers every completion with these choices.
fn serving(choices: Value) -> Server {
    Server::start(move |request| match request.path.as_str() {
        "/v1/models" => models(&["prover"]),
        _ => completion(&choices),
    })
}

/// A server that gives each completion to a function, with its number.
fn answering(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| match request.path.as_str() {
        "/v1/models" => models(&["prover"]),
        _ => answer(request.number - 1, request),
    })
}

fn right() -> Reply {
    completion(&json!([
        choice("simp", &[("simp", -0.5), ("\n", -0.25)]),
        choice("", &[("\n", -1.0)])
    ]))
}

#[test]
fn a_log_probability_is_the_sum_over_the_tokens() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => models(&["prover"]),
        "/v1/completions" => completion(&json!([
            choice(" exact h", &[(" exact", -1.5), (" h", -0.5), ("\n", -0.25)]),
            choice("simp ", &[("simp", -0.125), (" ", -1.0), ("\n", -1.0)]),
            choice("simp", &[("simp", -0.125), ("\n", -0.125)]),
            choice("", &[("\n", -3.0)]),
        ])),
        other => unreachable!("{other}"),
    });
    let options = options(&server)
        .with_samples(4)
        .with_temperature(0.75)
        .with_max_tokens(64)
        .with_seed(7)
        .with_template("State: {state}\nTactic:");
    let policy = connect(options).unwrap();
    assert_eq!(policy.model(), "prover");
    assert_eq!(
        candidates(&policy),
        [("simp".to_owned(), -0.25), ("exact h".to_owned(), -2.25)],
        "equal tactics are merged, empty ones dropped, the most probable first"
    );
    let expected = json!({
        "model": "prover", "prompt": "State: ⊢ True\nTactic:", "n": 4, "temperature": 0.75,
        "top_p": 1.0, "max_tokens": 64, "stop": ["\n"], "seed": 7, "logprobs": 1, "stream": false,
    });
    assert_eq!(server.requests()[1].json(), expected);
}

#[test]
fn ties_stay_in_the_order_of_the_server() {
    let server = serving(json!([choice("b", &[("b", -1.0)]), choice("a", &[("a", -1.0)])]));
    let policy = connect(options(&server)).unwrap();
    assert_eq!(candidates(&policy), [("b".to_owned(), -1.0), ("a".to_owned(), -1.0)]);
}

#[test]
fn chats_are_understood() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v1/models" => models(&["prover"]),
        "/v1/chat/completions" => chat(&[
            ("rfl", &[("r", -0.5), ("fl", -0.25), ("<|im_end|>", -0.125)]),
            ("simp", &[("simp", -0.5)]),
        ]),
        other => unreachable!("{other}"),
    });
    let policy = connect(options(&server).with_api(HttpApi::Chat)).unwrap();
    assert_eq!(candidates(&policy), [("simp".to_owned(), -0.5), ("rfl".to_owned(), -0.875)]);
    let asked = server.requests()[1].json();
    assert_eq!(asked["messages"], json!([{"role": "user", "content": "⊢ True"}]));
    assert_eq!(asked["logprobs"], json!(true));
}

#[test]
fn a_server_that_does_not_stop_is_cut_with_its_log_probability() {
    let server = serving(json!([
        choice("simp\nexact", &[("si", -0.5), ("mp\n", -0.25), ("exact", -4.0)]),
        choice("omega\nx", &[("omega", -1.0), ("\n", -1.0), ("x", -4.0)]),
    ]));
    let policy = connect(options(&server)).unwrap();
    assert_eq!(candidates(&policy), [("simp".to_owned(), -0.75), ("omega".to_owned(), -2.0)]);

    let server =
        serving(json!([choice("∀\nx", &[("bytes:\\xe2", -0.5)]), choice("a", &[("a", -1.0)])]));
    let error = propose(&connect(options(&server)).unwrap(), &["⊢ True"]).unwrap_err();
    assert!(error.to_string().contains("did not stop"), "{error}");
}

#[test]
fn samples_that_had_not_ended_are_no_candidates() {
    let mut cut = choice("simp [foo, b", &[("simp", -0.5)]);
    cut["finish_reason"] = json!("length");
    let server = serving(json!([cut, choice("rfl", &[("rfl", -1.0)])]));
    assert_eq!(candidates(&connect(options(&server)).unwrap()), [("rfl".to_owned(), -1.0)]);
    let server = serving(json!([cut, choice("", &[("\n", -1.0)])]));
    let reason = no_candidates(&connect(options(&server).with_max_tokens(9)).unwrap());
    assert!(reason.contains("1 of 2 samples had not ended after 9 tokens"), "{reason}");
}

#[test]
fn uniform_candidates_need_no_log_probabilities() {
    let mut plain = [choice("b", &[]), choice("a", &[]), choice("b", &[])];
    for choice in &mut plain {
        choice["logprobs"] = Value::Null;
    }
    let server = serving(json!(plain));
    let policy = connect(options(&server).with_samples(3).with_uniform(true)).unwrap();
    let half = -(2.0_f64.ln());
    assert_eq!(candidates(&policy), [("b".to_owned(), half), ("a".to_owned(), half)]);
    assert_eq!(server.requests()[1].json()["logprobs"], Value::Null);
}

#[test]
fn answers_that_are_none_are_errors_with_the_url_and_a_hint() {
    let good = || choice("simp", &[("simp", -0.5)]);
    let with = |field: &str, value: Value| {
        let mut wrong = good();
        wrong[field] = value;
        json!([good(), wrong])
    };
    let log_prob =
        |value: Value| with("logprobs", json!({"tokens": ["simp"], "token_logprobs": [value]}));
    let cases = [
        (json!([good()]), "1 choices, and 2 were asked for"),
        (json!([good(), good(), good()]), "3 choices"),
        (with("logprobs", Value::Null), "choice 1: no log-probabilities"),
        (with("logprobs", json!({"tokens": [], "token_logprobs": []})), "no log-probabilities"),
        (with("logprobs", json!({"tokens": ["a"], "token_logprobs": []})), "1 tokens and 0"),
        (with("text", Value::Null), "choice 1: no text"),
        (with("finish_reason", json!("abort")), "\"abort\""),
        (with("finish_reason", Value::Null), "no finish_reason"),
        (log_prob(json!(0.5)), "log-probability 0.5 of token \"simp\""),
        (log_prob(Value::Null), "null for a token"),
        (log_prob(json!("high")), "an unexpected answer"),
    ];
    for (choices, expected) in cases {
        let server = serving(choices);
        let error = cause(propose(&connect(options(&server)).unwrap(), &["⊢ True"]).unwrap_err());
        let HttpPolicyError::Answer { url, .. } = &error else { unreachable!("{error:?}") };
        assert_eq!(*url, format!("{}/v1/completions", server.url()));
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains("\nhint: "), "{message}");
        assert_eq!(server.requests().len(), 2, "nothing is gained by asking again");
    }
    for body in ["", "<html>busy</html>", r#"{"choices": [{"text": "a", "logprobs": NaN}]}"#, "[]"]
    {
        let server = answering(move |_, _| Reply::text(200, body));
        let error = cause(propose(&connect(options(&server)).unwrap(), &["⊢ True"]).unwrap_err());
        assert!(matches!(error, HttpPolicyError::Answer { .. }), "{error:?}");
    }
}

#[test]
fn numbers_that_are_none_are_called_so() {
    for number in ["NaN", "-Infinity", "-1e999"] {
        let body = format!(
            r#"{{"choices": [{{"text": "a", "finish_reason": "stop", "logprobs":
                {{"tokens": ["a"], "token_logprobs": [{number}]}}}}]}}"#
        );
        let server = answering(move |_, _| Reply::text(200, &body));
        let error = propose(&connect(options(&server)).unwrap(), &["⊢ True"]).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("{number} is no finite number (line 2")), "{message}");
        assert!(!message.contains("OpenAI"), "{message}");
    }
}

#[test]
fn a_rounding_above_zero_is_zero() {
    let server = serving(json!([choice("a", &[("a", 1e-7)]), choice("b", &[("b", -1.0)])]));
    let policy = connect(options(&server)).unwrap();
    assert_eq!(candidates(&policy)[0], ("a".to_owned(), 0.0));
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let server = answering(|number, _| match number {
        0 => Reply::text(429, r#"{"error": {"message": "busy"}}"#).header("retry-after", "1"),
        1 => Reply::text(429, "busy"),
        _ => right(),
    });
    let policy = connect(options(&server)).unwrap();
    let start = Instant::now();
    assert_eq!(candidates(&policy), [("simp".to_owned(), -0.75)]);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_wait_beyond_the_limit_is_an_error() {
    let server = answering(|_, _| Reply::text(429, "later").header("retry-after", "3600"));
    let policy = connect(options(&server)).unwrap();
    let error = cause(propose(&policy, &["⊢ True"]).unwrap_err());
    assert!(matches!(error, HttpPolicyError::Status { status: 429, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn what_may_pass_is_tried_again() {
    let bad: [fn() -> Reply; 4] = [
        || Reply::text(500, "Internal Server Error"),
        || Reply::text(503, "starting"),
        || right().cut_in_half(),
        Reply::close,
    ];
    for bad in bad {
        let server = answering(move |number, _| if number == 0 { bad() } else { right() });
        let policy = connect(options(&server)).unwrap();
        assert_eq!(candidates(&policy), [("simp".to_owned(), -0.75)]);
        assert_eq!(server.requests().len(), 3);
    }
}

#[test]
fn what_does_not_pass_is_an_error_after_the_retries() {
    let server =
        answering(|_, _| Reply::text(500, r#"{"message": "\u001b[31mCUDA\nout of memory"}"#));
    let policy = connect(options(&server)).unwrap();
    let error = cause(propose(&policy, &["⊢ True"]).unwrap_err());
    let HttpPolicyError::Status { status: 500, message, .. } = &error else {
        unreachable!("{error:?}")
    };
    assert_eq!(message, "\\u{1b}[31mCUDA out of memory (3 attempts)");
    assert_eq!(server.requests().len(), 4);

    let server = answering(|_, _| right().cut_in_half());
    let policy = connect(options(&server)).unwrap();
    let error = cause(propose(&policy, &["⊢ True"]).unwrap_err());
    assert!(matches!(error, HttpPolicyError::Unreachable { attempts: 3, .. }), "{error:?}");
}

#[test]
fn a_server_that_is_gone_is_an_error() {
    let server = serving(json!([]));
    let policy = connect(options(&server)).unwrap();
    let url = server.url();
    drop(server);
    let error = cause(propose(&policy, &["⊢ True"]).unwrap_err());
    assert!(matches!(error, HttpPolicyError::Unreachable { .. }), "{error:?}");
    let options = HttpPolicyOptions::new(url).with_retries(1, Duration::from_millis(1));
    let message = connect(options).unwrap_err().to_string();
    assert!(message.contains("no connection") && message.contains("hint: "), "{message}");
}

#[test]
fn a_request_has_a_time_limit() {
    let server = answering(|_, _| right().after(Duration::from_secs(5)));
    let options = options(&server).with_timeout(Duration::from_millis(100));
    let error = cause(propose(&connect(options).unwrap(), &["⊢ True"]).unwrap_err());
    let HttpPolicyError::Unreachable { attempts: 3, reason, .. } = &error else {
        unreachable!("{error:?}")
    };
    assert!(reason.contains("within 100ms"), "{reason}");
}

#[test]
fn a_prompt_that_is_refused_fails_only_its_own_state() {
    let server = answering(|_, request| {
        if request.json()["prompt"].as_str().unwrap().len() < 100 {
            return right();
        }
        // As vLLM 0.10 and later say it.
        let message = "This model's maximum context length is 2048 tokens.";
        Reply::text(400, &json!({"error": {"message": message, "code": 400}}).to_string())
    });
    let policy = connect(options(&server)).unwrap();
    let long = "n : ℕ\n".repeat(50);
    let found = propose(&policy, &["⊢ True", &long, "⊢ False"]).unwrap();
    assert!(found[0].is_ok() && found[2].is_ok());
    let reason = &found[1].as_ref().unwrap_err().0;
    assert!(reason.contains("400") && reason.contains("maximum context length"), "{reason}");
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn other_refusals_are_errors() {
    for status in [301, 401, 403, 404, 418] {
        let server = answering(move |_, _| Reply::text(status, "no"));
        let error = propose(&connect(options(&server)).unwrap(), &["⊢ True"]).unwrap_err();
        assert!(error.source().is_none(), "whoever prints causes would print it twice");
        let for_all = matches!(error, PolicyError::Unavailable { .. });
        assert_eq!(for_all, [401, 403, 404].contains(&status), "{error:?}");
        let HttpPolicyError::Status { status: found, .. } = cause(error) else {
            unreachable!("{status}")
        };
        assert_eq!(found, status);
        assert_eq!(server.requests().len(), 2);
    }
}

#[test]
fn a_huge_answer_is_refused() {
    let server = answering(|_, _| Reply::text(200, &" ".repeat(3 << 20)));
    let policy = connect(options(&server).with_max_answer_bytes(1 << 20)).unwrap();
    let error = propose(&policy, &["⊢ True"]).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn a_wrong_model_is_refused_by_name() {
    let server = Server::start(|_| models(&["a", "b"]));
    let message = connect(options(&server).with_model("c".to_owned())).unwrap_err().to_string();
    assert!(message.contains("\"c\"") && message.contains("a, b"), "{message}");
    let message = connect(options(&server)).unwrap_err().to_string();
    assert!(message.contains("2 models: a, b\nhint: name the model"), "{message}");
    let policy = connect(options(&server).with_model("b".to_owned())).unwrap();
    assert_eq!(policy.model(), "b");
    let server = Server::start(|_| Reply::text(404, "no such page"));
    let message = connect(options(&server)).unwrap_err().to_string();
    assert!(message.contains("/v1/models: status 404: no such page\nhint: "), "{message}");
}

#[test]
fn options_without_meaning_are_refused() {
    let plain = || HttpPolicyOptions::new("http://127.0.0.1:1/v1");
    let cases = [
        (HttpPolicyOptions::new("127.0.0.1:8000"), "base_url"),
        (HttpPolicyOptions::new("ftp://host"), "base_url"),
        (HttpPolicyOptions::new("http://me:secret@host"), "base_url"),
        (plain().with_samples(0), "samples"),
        (plain().with_max_tokens(0), "max_tokens"),
        (plain().with_max_concurrent(0), "max_concurrent"),
        (plain().with_template("no place"), "template"),
        (plain().with_temperature(f64::NAN), "temperature"),
        (plain().with_top_p(0.0), "top_p"),
        (plain().with_stop([""]), "stop"),
        (plain().with_timeout(Duration::ZERO), "timeout"),
    ];
    for (options, expected) in cases {
        let error = cause(connect(options).unwrap_err());
        assert!(!error.to_string().contains("secret"), "{error}");
        let HttpPolicyError::Option { option, .. } = error else { unreachable!("{error:?}") };
        assert_eq!(option, expected);
    }
    let missing = plain().with_api_key_variable("EBM_ENCODE_NO_SUCH_KEY".to_owned());
    let message = connect(missing).unwrap_err().to_string();
    assert!(message.contains("EBM_ENCODE_NO_SUCH_KEY is not set"), "{message}");
}

#[test]
fn the_key_is_taken_from_the_environment() {
    let server = serving(json!([]));
    // `CARGO_PKG_NAME` is set in every test.
    let options = options(&server).with_api_key_variable("CARGO_PKG_NAME".to_owned());
    let policy = connect(options).unwrap();
    assert_eq!(server.requests()[0].header("authorization"), Some("Bearer ebm-search"));
    assert!(!format!("{policy:?}").contains("Bearer"));
}

#[test]
fn waiting_ends_when_the_search_is_stopped() {
    let server = answering(|_, _| right().after(Duration::from_secs(10)));
    let policy = connect(options(&server)).unwrap();
    let cancel = Cancel::default();
    let control = Control::new(cancel.clone());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let stopped = policy.propose(&[Query::new("t", "⊢ True")], &control).unwrap_err();
            (stopped, Instant::now())
        });
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        cancel.cancel();
        let (stopped, end) = waiting.join().unwrap();
        assert!(matches!(stopped, PolicyError::Stopped(Stop::Cancelled)), "{stopped:?}");
        assert!(end.duration_since(start) < Duration::from_secs(2));
    });
    let deadline = Some(Instant::now() + Duration::from_millis(100));
    let control = Control::default().with_deadline(deadline);
    let stopped = policy.propose(&[Query::new("t", "⊢ True")], &control).unwrap_err();
    assert!(matches!(stopped, PolicyError::Stopped(Stop::Time)), "{stopped:?}");
}

#[test]
fn requests_run_at_once_and_no_more_than_allowed() {
    let server = answering(|_, request| {
        let state = request.json()["prompt"].as_str().unwrap().to_owned();
        let tactic = choice(&state, &[(&state, -1.0)]);
        completion(&json!([tactic, tactic])).after(Duration::from_millis(50))
    });
    let policy = connect(options(&server).with_max_concurrent(3)).unwrap();
    thread::scope(|scope| {
        for thread in 0..4 {
            let policy = &policy;
            scope.spawn(move || {
                let states: Vec<String> = (0..4).map(|i| format!("state {thread} {i}")).collect();
                let states: Vec<&str> = states.iter().map(String::as_str).collect();
                for (state, found) in states.iter().zip(propose(policy, &states).unwrap()) {
                    assert_eq!(&*found.unwrap()[0].tactic, *state, "each gets its own");
                }
            });
        }
    });
    assert_eq!(server.most_at_once(), 3);
    assert_eq!(server.requests().len(), 17);
    assert!(propose(&policy, &[]).unwrap().is_empty());
}
