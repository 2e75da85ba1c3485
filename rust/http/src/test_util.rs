//! A server on a free port that answers as told, for tests of clients.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "a test that fails here fails")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

/// What a client sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// From 0, in the order of arrival.
    pub number: usize,
    /// `GET` or `POST`.
    pub method: String,
    /// What was asked for.
    pub path: String,
    /// By their names in lower case.
    pub headers: HashMap<String, String>,
    /// What it holds.
    pub body: Vec<u8>,
}

impl Request {
    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// A header's value, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the server sends.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status; 0 for no answer at all.
    pub status: u16,
    /// Beside the length and the end of the connection.
    pub headers: Vec<(String, String)>,
    /// What it holds.
    pub body: Vec<u8>,
    wait: Duration,
    /// How much of the body is sent before the connection ends.
    sent: Option<usize>,
}

impl Reply {
    /// A reply of that content type.
    #[must_use]
    pub fn new(status: u16, kind: &str, body: Vec<u8>) -> Self {
        let headers = vec![("content-type".to_owned(), kind.to_owned())];
        Self { status, headers, body, wait: Duration::ZERO, sent: None }
    }

    /// A reply in JSON.
    #[must_use]
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string().into_bytes())
    }

    /// A reply that says that it is JSON, whatever it is.
    #[must_use]
    pub fn text(status: u16, body: &str) -> Self {
        Self::new(status, "application/json", body.as_bytes().to_vec())
    }

    /// No answer at all.
    #[must_use]
    pub fn close() -> Self {
        Self::new(0, "", Vec::new())
    }

    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves a header out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// Lets the client wait.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// The server dies when it has sent so much.
    #[must_use]
    pub fn dying_after(self, bytes: usize) -> Self {
        Self { sent: Some(bytes), ..self }
    }

    /// The server dies in the middle of the body.
    #[must_use]
    pub fn cut_in_half(self) -> Self {
        let half = self.body.len() / 2;
        self.dying_after(half)
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

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Debug, Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    at_once: AtomicUsize,
    most: AtomicUsize,
    over: AtomicBool,
}

/// A server on a free port, until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server that gives each request to a function.
    #[must_use]
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

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came in so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The most requests that were under way at a time.
    #[must_use]
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

fn serve(stream: &TcpStream, shared: &Shared, answer: &Handler) {
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
