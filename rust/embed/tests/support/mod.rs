//! A small model, and bad weather for it.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ebm_embed::{Interpreter, PythonEncoder, PythonEncoderOptions};
use pyo3::prelude::*;

/// Bad weather comes with the words of a state.
const WEATHER: &std::ffi::CStr = cr#"
import torch
from ebm_encode.encoder import Encoder
right = Encoder.encode_into
seen, kept = [], []
def encode_into(self, states, out):
    seen.append((out.ctypes.data, len(states)))
    for array in kept:
        array[:] = -1
    if any("RAISE" in state for state in states):
        raise ValueError("a state is poisoned")
    if any("TORCH" in state for state in states):
        raise torch.OutOfMemoryError("CUDA out of memory")
    if any("KEEP" in state for state in states):
        kept.append(out)
    return right(self, states, out)
Encoder.encode_into = encode_into
import builtins
builtins.seen = seen
"#;

pub fn python() -> &'static Interpreter {
    static STARTED: OnceLock<&Interpreter> = OnceLock::new();
    STARTED.get_or_init(|| {
        let python = Interpreter::start(None).unwrap();
        Python::attach(|py| py.run(WEATHER, None, None)).unwrap();
        python
    })
}

/// Address and number of states of every call so far.
pub fn seen() -> Vec<(usize, usize)> {
    Python::attach(|py| py.import("builtins")?.getattr("seen")?.extract()).unwrap()
}

/// A random llama with a tokenizer, made once.
pub fn model() -> &'static Path {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/tiny_model.py");
        let python = python().environment().executable();
        let status = Command::new(python).arg(script).arg(&path).status().unwrap();
        assert!(status.success(), "the model was not made");
        (folder, path)
    });
    path
}

pub fn options() -> PythonEncoderOptions {
    PythonEncoderOptions::new(model().to_str().unwrap())
}

pub fn encoder() -> PythonEncoder {
    PythonEncoder::load(python(), &options()).unwrap()
}

/// The largest difference between two embeddings, relative to the largest value.
pub fn difference(row: &[f32], other: &[f32]) -> f32 {
    let scale = other.iter().map(|value| value.abs()).fold(0.0, f32::max);
    row.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}
