//! An HTTP server that answers as vLLM and SGLang do, or as told.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// From 0, in the order of arrival.
    pub number: usize,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What the server sends.
#[derive(Debug, Clone)]
pub struct Reply {
    bytes: Vec<u8>,
    header: String,
    status: u16,
    wait: Duration,
    /// How much of the body is sent.
    sent: Option<usize>,
}

impl Reply {
    pub fn text(status: u16, body: &str) -> Self {
        let (bytes, header) = (body.as_bytes().to_vec(), String::new());
        Self { bytes, header, status, wait: Duration::ZERO, sent: None }
    }

    /// No answer at all.
    pub fn close() -> Self {
        Self { status: 0, ..Self::text(0, "") }
    }

    pub fn cut_in_half(mut self) -> Self {
        self.sent = Some(self.bytes.len() / 2);
        self
    }

    pub fn with_header(mut self, line: &str) -> Self {
        self.header = format!("{line}\r\n");
        self
    }

    pub fn after(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn write(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        if self.status == 0 {
            return Ok(());
        }
        let (status, length, header) = (self.status, self.bytes.len(), &self.header);
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\n{header}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.bytes[..self.sent.unwrap_or(length)])
    }
}

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

type Answer = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    at_once: AtomicUsize,
    most: AtomicUsize,
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

    /// The most requests that were under way at a time.
    pub fn most_at_once(&self) -> usize {
        self.shared.most.load(Ordering::Acquire)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        let _ = self.listening.take().map(JoinHandle::join);
    }
}

fn serve(stream: &TcpStream, shared: &Shared, answer: &Answer) {
    let Some(mut request) = read(stream) else { return };
    let now = shared.at_once.fetch_add(1, Ordering::AcqRel) + 1;
    shared.most.fetch_max(now, Ordering::AcqRel);
    {
        let mut requests = shared.requests.lock().unwrap();
        request.number = requests.len();
        requests.push(request.clone());
    }
    let reply = answer(&request);
    thread::sleep(reply.wait);
    // Before the client knows, or it may be faster with its next request.
    shared.at_once.fetch_sub(1, Ordering::AcqRel);
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
    let path = line()?.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, value)| value.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { number: 0, path, headers, body })
}
