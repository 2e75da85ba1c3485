//! Identities: their digest, and how their differences are shown.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod common;

use common::identity;
use ebm_cache::{Identity, differences};
use serde_json::json;

#[test]
fn the_digest_is_of_the_sorted_json() {
    let mut identity = identity();
    identity.code = Some("blake3:\"x\"".into());
    identity.extra.insert("zeta".into(), json!({"b": [1, {"d": null, "c": "ä"}], "a": 2.5}));
    identity.extra.insert("adapter".into(), json!(true));
    let text = concat!(
        r#"{"adapter":true,"code":"blake3:\"x\"","config":"blake3:c","dtype":"float32","layer":-1,"#,
        r#""max_length":2048,"pooling":"mean","quantization":"none","#,
        r#""special_tokens":"tokenizer-default-once","template":"{state}","tokenizer":"blake3:t","#,
        r#""truncation":"right","weights":"blake3:w","#,
        r#""zeta":{"a":2.5,"b":[1,{"c":"ä","d":null}]}}"#
    );
    let expected = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
    assert_eq!(identity.digest(), expected);
    let read = Identity::from_json(text).unwrap();
    assert_eq!(read.digest(), expected);
}

fn shown(left: &str, right: &str) -> String {
    let with = |template: &str| Identity { template: template.to_owned(), ..identity() };
    let found = differences(Some(&with(left)), Some(&with(right)));
    assert_eq!(found.len(), 1);
    found[0].to_string()
}

#[test]
fn differences_show_where_texts_begin_to_differ() {
    let start = "The same beginning of two long templates, ".repeat(3);
    let one = format!("{start}then one ending\nof the template {{state}}, and the rest");
    let other = format!("{start}then another ending\nof the template {{state}}, and the rest");
    let text = shown(&one, &other);
    assert!(text.contains("then one ending\\n"), "{text}");
    assert!(text.contains("then another ending\\n"), "{text}");
    assert!(text.starts_with("template (…"), "{text}");
    assert!(text.chars().count() < 140, "{text}");
}

#[test]
fn short_texts_are_shown_whole() {
    assert_eq!(shown("a {state}", "b {state}"), "template (a {state} here, b {state} there)");
    assert_eq!(shown("{state}", "{state}!"), "template ({state} here, {state}! there)");
    let long = "x".repeat(60);
    let text = shown(&long, &format!("{long}y"));
    assert!(text.contains("xy there"), "{text}");
}
