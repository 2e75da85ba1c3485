//! A server that answers as `ebm-encode serve` does, or as told.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

pub mod calls;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray,
    UInt32Array, UInt64Array,
};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use ebm_cache::Identity;
use ebm_encoder::{Encoder, NoEmbedding, Report, TestEncoder, TokenDigest};
use serde_json::{Value, json};

use crate::support::DIM;

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// From 0, in the order of arrival.
    pub number: usize,
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn texts(&self) -> Vec<String> {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        let body = body.as_object().unwrap();
        assert_eq!(body.keys().collect::<Vec<_>>(), ["texts"], "unknown keys are refused");
        serde_json::from_value(body["texts"].clone()).unwrap()
    }
}

/// What the server sends.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    wait: Duration,
    /// How much of the body is sent before the connection ends.
    sent: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, kind: &str, body: Vec<u8>) -> Self {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Self { status, headers, body, wait: Duration::ZERO, sent: None }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string().into_bytes())
    }

    pub fn error(status: u16, message: &str, hint: &str) -> Self {
        let error = json!({"message": message, "type": "t", "code": status, "hint": hint});
        Self::json(status, &json!({ "error": error }))
    }

    /// No answer at all.
    pub fn close() -> Self {
        Self::new(0, "", Vec::new())
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    pub fn with_body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    pub fn after(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// The server dies when it has sent so much.
    pub fn dying_after(self, bytes: usize) -> Self {
        Self { sent: Some(bytes), ..self }
    }

    fn write(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        if self.status == 0 {
            return Ok(());
        }
        write!(stream, "HTTP/1.1 {} X\r\nconnection: close\r\n", self.status)?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        write!(stream, "content-length: {}\r\n\r\n", self.body.len())?;
        stream.write_all(&self.body[..self.sent.unwrap_or(self.body.len())])
    }
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

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    over: AtomicBool,
}

/// A server on a free port, until it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, answer) = (Arc::new(Shared::default()), Arc::new(answer));
        let known = Arc::clone(&shared);
        let listening = thread::spawn(move || {
            for stream in listener.incoming() {
                if known.over.load(Ordering::Acquire) {
                    return;
                }
                let (known, answer) = (Arc::clone(&known), Arc::clone(&answer));
                thread::spawn(move || serve(&stream.unwrap(), &known, &*answer));
            }
        });
        Self { address, shared, listening: Some(listening) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Requests for embeddings.
    pub fn encodes(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path == "/encode").collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        let _ = self.listening.take().map(JoinHandle::join);
    }
}

fn serve(stream: &TcpStream, shared: &Shared, answer: &Handler) {
    let Some(mut request) = read(stream) else { return };
    {
        let mut requests = shared.requests.lock().unwrap();
        request.number = requests.len();
        requests.push(request.clone());
    }
    let reply = answer(&request);
    thread::sleep(reply.wait);
    let _ = reply.write(stream); // the client may be gone
    let _ = stream.shutdown(Shutdown::Both);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { number: 0, method, path, headers, body })
}
