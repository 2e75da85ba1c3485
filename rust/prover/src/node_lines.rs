//! Nodes of a search as JSON lines, taken in batches as they come.

use std::io::{self, BufRead, Cursor};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

use anyhow::{Context, anyhow, bail};
use ebm_cache::storage;
use ebm_search::Node;
use serde_json::{Map, Value};

const STATE: &str = "state_pp";
const FINISHED: &str = "is_proof_complete";
/// Some editors put it before UTF-8 text; it is part of no line.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Lines that are read ahead.
const AHEAD: usize = 1024;

/// One line.
pub(crate) struct NodeLine {
    /// The state's text; of no meaning where the proof is finished.
    pub(crate) state: String,
    pub(crate) finished: bool,
    /// Why the state cannot be brought into the encoder's form, if so.
    pub(crate) refused: Option<String>,
    /// The whole line.
    pub(crate) fields: Map<String, Value>,
}

impl NodeLine {
    /// The node, to be scored.
    pub(crate) fn node(&self) -> Node<'_> {
        if self.finished { Node::Finished } else { Node::Open(&self.state) }
    }
}

/// Lines of a file or of standard input, read on a thread: so what has come is taken without waiting for
/// more.
pub(crate) struct NodeLines {
    lines: Receiver<anyhow::Result<NodeLine>>,
}

impl NodeLines {
    /// Starts to read; standard input if the path is `-` or not given.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let (sender, lines) = sync_channel(AHEAD);
        let path = path.filter(|path| *path != Path::new("-"));
        let bytes = match path {
            Some(path) => {
                let name = || path.display().to_string();
                Some(storage::read_file(path)?.context("no such file").with_context(name)?)
            }
            None => None,
        };
        let name =
            path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
        thread::Builder::new().name("lines".to_owned()).spawn(move || match bytes {
            Some(bytes) => send_lines(Cursor::new(bytes), &name, &sender),
            None => send_lines(io::stdin().lock(), &name, &sender),
        })?;
        Ok(Self { lines })
    }

    /// Waits for a line, and takes those that are there as well, `most` in all; and whether the input has
    /// ended, or what is wrong with the line behind them.
    pub(crate) fn next_batch(&mut self, most: usize) -> (Vec<NodeLine>, anyhow::Result<bool>) {
        let mut batch = Vec::new();
        let mut next = self.lines.recv().map_err(|_| TryRecvError::Disconnected);
        loop {
            match next {
                Ok(Ok(line)) => batch.push(line),
                Ok(Err(wrong)) => return (batch, Err(wrong)),
                Err(TryRecvError::Empty) => return (batch, Ok(false)),
                Err(TryRecvError::Disconnected) => return (batch, Ok(true)),
            }
            if batch.len() == most {
                return (batch, Ok(false));
            }
            next = self.lines.try_recv();
        }
    }
}

/// Sends each line that is not blank, up to the first that is wrong.
fn send_lines(mut input: impl BufRead, name: &str, lines: &SyncSender<anyhow::Result<NodeLine>>) {
    for number in 1_u64.. {
        let mut bytes = Vec::new();
        let line = match input.read_until(b'\n', &mut bytes) {
            Ok(0) => return,
            Ok(_) if bytes.trim_ascii().is_empty() => continue,
            Ok(_) => parse(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes)),
            Err(error) => Err(anyhow!(error).context("cannot be read")),
        };
        let line = line.with_context(|| format!("{name}: line {number}"));
        let last = line.is_err();
        // Nobody waits for more after an error of another kind.
        if lines.send(line).is_err() || last {
            return;
        }
    }
}

fn parse(line: &[u8]) -> anyhow::Result<NodeLine> {
    let text = str::from_utf8(line).map_err(|_| anyhow!("is not UTF-8 text"))?;
    let value: Value =
        serde_json::from_str(text).map_err(|error| anyhow!("is not JSON: {error}"))?;
    let Value::Object(fields) = value else { bail!("is not an object with a text {STATE:?}") };
    let finished = match fields.get(FINISHED) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(finished)) => *finished,
        Some(other) => bail!("{FINISHED:?} is {other}, expected true or false"),
    };
    let state = match fields.get(STATE) {
        Some(Value::String(state)) => state.clone(),
        Some(Value::Null) if finished => String::new(),
        None => bail!("has no {STATE:?}"),
        Some(other) => bail!("{STATE:?} is {other}, expected a text"),
    };
    Ok(NodeLine { state, finished, refused: None, fields })
}
