//! A server that answers as `ebm-encode serve` does, or as told.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

pub mod calls;

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray,
    UInt32Array, UInt64Array,
};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use ebm_cache::Identity;
use ebm_encoder::{Encoder, NoEmbedding, Report, TestEncoder, TokenDigest};
pub use ebm_http::test_util::{Reply, Request, Server};
use serde_json::{Value, json};

use crate::support::DIM;

/// The texts of a request; unknown keys are refused.
pub fn texts_of(request: &Request) -> Vec<String> {
    let body = request.json();
    let body = body.as_object().unwrap();
    assert_eq!(body.keys().collect::<Vec<_>>(), ["texts"]);
    serde_json::from_value(body["texts"].clone()).unwrap()
}

/// An error as the server sends it.
pub fn refusal(status: u16, message: &str, hint: &str) -> Reply {
    let error = json!({"message": message, "type": "t", "code": status, "hint": hint});
    Reply::json(status, &json!({ "error": error }))
}

/// Requests for embeddings.
pub fn encodes(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path == "/encode").collect()
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Row {
    pub status: String,
    pub tokens: u32,
    pub truncated: bool,
    pub digest: Option<u64>,
    pub reason: String,
    pub embedding: Option<Vec<f32>>,
}

/// An answer before it is bytes.
#[derive(Debug, Clone)]
pub struct Answer {
    pub identity: String,
    pub instance: String,
    pub dim: usize,
    pub rows: Vec<Row>,
    /// Rows of each record batch.
    pub batch: usize,
}

impl Answer {
    /// The right answer to some texts, from a test encoder.
    pub fn of(encoder: &TestEncoder, texts: &[String]) -> Self {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut values = vec![0.0; texts.len() * DIM];
        let reports = encoder.encode_into(&texts, &mut values).unwrap();
        let rows = texts.iter().zip(reports).zip(values.chunks(DIM));
        Self {
            identity: encoder.identity().digest(),
            instance: "one".to_owned(),
            dim: DIM,
            rows: rows.map(|((text, report), values)| row(text, report, values)).collect(),
            batch: 3,
        }
    }

    pub fn body(&self) -> Vec<u8> {
        let schema = self.schema();
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        for rows in self.rows.chunks(self.batch) {
            writer.write(&batch(&schema, rows, self.dim)).unwrap();
        }
        writer.finish().unwrap();
        writer.into_inner().unwrap()
    }

    fn schema(&self) -> Schema {
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let list = DataType::FixedSizeList(item, i32::try_from(self.dim).unwrap());
        let field = |name, kind| Field::new(name, kind, true);
        let fields = vec![
            field("status", DataType::Utf8),
            field("tokens", DataType::UInt32),
            field("truncated", DataType::Boolean),
            field("token_digest", DataType::UInt64),
            field("reason", DataType::Utf8),
            field("embedding", list),
        ];
        let metadata = [
            ("ebm-encode.identity", self.identity.clone()),
            ("ebm-encode.dim", self.dim.to_string()),
            ("ebm-encode.instance", self.instance.clone()),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        Schema::new_with_metadata(fields, metadata)
    }

    pub fn reply(&self) -> Reply {
        Reply::new(200, "application/vnd.apache.arrow.stream", self.body())
            .header("ebm-identity", &self.identity)
            .header("ebm-instance", &self.instance)
            .header("x-request-id", "r")
    }
}

fn row(text: &str, report: Report, values: &[f32]) -> Row {
    let none = |status: &str, tokens, reason: String| Row {
        status: status.to_owned(),
        tokens,
        truncated: false,
        digest: None,
        reason,
        embedding: None,
    };
    match report {
        Ok(prompt) => Row {
            truncated: text.contains("cut"),
            digest: prompt.digest.map(|_| digest_of(text)),
            embedding: Some(values.to_vec()),
            ..none("ok", u32::try_from(prompt.tokens).unwrap(), String::new())
        },
        Err(NoEmbedding::Bad { reason }) => none("bad", 3, reason),
        Err(NoEmbedding::TooLong { tokens }) => {
            none("overlong", u32::try_from(tokens).unwrap(), "too long".to_owned())
        }
        Err(other) => none("out_of_memory", 3, other.to_string()),
    }
}

/// The number that the server sends as the digest of a text.
pub fn digest_of(text: &str) -> u64 {
    // FNV-1a: the upper half of what a u64 can hold occurs, too.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The same as the crate's type.
pub fn token_digest(text: &str) -> TokenDigest {
    TokenDigest::new(digest_of(text))
}

fn batch(schema: &Schema, rows: &[Row], dim: usize) -> RecordBatch {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let mut values = Vec::new();
    for row in rows {
        values.extend(row.embedding.clone().unwrap_or_else(|| vec![0.0; dim]));
    }
    let valid: Vec<bool> = rows.iter().map(|row| row.embedding.is_some()).collect();
    let list = FixedSizeListArray::new(
        item,
        i32::try_from(dim).unwrap(),
        Arc::new(Float32Array::from(values)),
        Some(valid.into()),
    );
    let texts = |text: fn(&Row) -> &str| StringArray::from_iter_values(rows.iter().map(text));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(texts(|row| &row.status)),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.tokens))),
        Arc::new(rows.iter().map(|row| Some(row.truncated)).collect::<BooleanArray>()),
        Arc::new(rows.iter().map(|row| row.digest).collect::<UInt64Array>()),
        Arc::new(texts(|row| &row.reason)),
        Arc::new(list),
    ];
    RecordBatch::try_new(Arc::new(schema.clone()), columns).unwrap()
}

/// What `/info` says.
pub fn info(identity: &Identity) -> Value {
    json!({
        "software": "ebm-encode", "version": "0.1.0", "instance": "one",
        "identity": serde_json::from_str::<Value>(&identity.to_json()).unwrap(),
        "identity_digest": identity.digest(), "dim": DIM, "model": "tiny", "engine": "padded",
        "state_format": "as-given",
        "limits": {
            "max_texts": 64, "max_body_bytes": 1 << 20, "max_tokens": 2048, "queue_texts": 4096,
            "timeout_seconds": 60.0,
        },
        "versions": {"torch": "2"},
    })
}

pub fn info_reply(identity: &Identity, body: &Value) -> Reply {
    let digest = identity.digest();
    Reply::json(200, body).header("ebm-identity", &digest).header("ebm-instance", "one")
}
