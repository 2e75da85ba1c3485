//! An HTTP server that answers as vLLM and SGLang do, or as told.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

pub use ebm_http::test_util::{Reply, Request, Server};
use serde_json::{Value, json};

/// `/v1/models`, as vLLM has it.
pub fn models(names: &[&str]) -> Reply {
    let model = |name: &&str| {
        json!({
            "id": name, "object": "model", "created": 1_790_000_000, "owned_by": "vllm",
            "root": "/models/it", "parent": null, "max_model_len": 2048, "permission": [],
        })
    };
    let data: Vec<Value> = names.iter().map(model).collect();
    Reply::text(200, &json!({"object": "list", "data": data}).to_string())
}

/// A choice of `/v1/completions`. The token that ended it is among the tokens, and not in the text.
pub fn choice(text: &str, tokens: &[(&str, f64)]) -> Value {
    let (texts, values): (Vec<&str>, Vec<f64>) = tokens.iter().copied().unzip();
    json!({
        "index": 0, "text": text, "finish_reason": "stop", "stop_reason": "\n",
        "logprobs": {
            "tokens": texts, "token_logprobs": values, "text_offset": vec![0; texts.len()],
            "top_logprobs": values.iter().map(|value| json!({"x": value})).collect::<Vec<_>>(),
        },
    })
}

pub fn completion(choices: &Value) -> Reply {
    let body = json!({
        "id": "cmpl-1", "object": "text_completion", "created": 1_790_000_000, "model": "prover",
        "choices": choices,
        "usage": {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12},
    });
    Reply::text(200, &body.to_string())
}

/// An answer of `/v1/chat/completions`.
pub fn chat(choices: &[(&str, &[(&str, f64)])]) -> Reply {
    let choice = |(text, tokens): &(&str, &[(&str, f64)])| {
        let tokens = tokens.iter().map(|(token, value)| {
            json!({"token": token, "logprob": value, "bytes": token.as_bytes(), "top_logprobs": []})
        });
        json!({
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": text, "tool_calls": []},
            "logprobs": {"content": tokens.collect::<Vec<_>>()},
        })
    };
    let choices: Vec<Value> = choices.iter().map(choice).collect();
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "prover", "choices": choices,
    });
    Reply::text(200, &body.to_string())
}
