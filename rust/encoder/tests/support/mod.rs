//! What several tests of encoders need.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use ebm_cache::Identity;
use ebm_encoder::{Encoder, EncoderError, Report, TestEncoder};

pub const DIM: usize = 8;

pub fn identity_with(dtype: &str) -> Identity {
    let json = r#"{"weights": "w", "config": "c", "tokenizer": "t", "template": "{state}",
        "special_tokens": "tokenizer-default-once", "pooling": "mean", "layer": -1,
        "dtype": "DTYPE", "quantization": "none", "max_length": null, "truncation": "none"}"#;
    Identity::from_json(&json.replace("DTYPE", dtype)).unwrap()
}

pub fn identity() -> Identity {
    identity_with("float32")
}

pub fn fake() -> TestEncoder {
    TestEncoder::new(DIM, identity()).unwrap()
}

/// An encoder that waits until it is told to continue, so that requests pile up behind it.
pub struct Held {
    pub inner: TestEncoder,
    pub begun: flume::Sender<usize>,
    pub go_on: flume::Receiver<()>,
}

impl Encoder for Held {
    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> Result<Vec<Report>, EncoderError> {
        self.begun.send(states.len()).unwrap();
        self.go_on.recv().unwrap();
        self.inner.encode_into(states, rows)
    }
}

/// A held encoder, a channel that tells the size of each call, and one that lets a call continue.
pub fn held() -> (Held, flume::Receiver<usize>, flume::Sender<()>) {
    let (begun, has_begun) = flume::unbounded();
    let (let_go, go_on) = flume::unbounded();
    (Held { inner: fake(), begun, go_on }, has_begun, let_go)
}

/// A runtime of one task.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(flume::Sender<()>);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
    let (unpark, parked) = flume::unbounded();
    let waker = Waker::from(Arc::new(Unpark(unpark)));
    let mut future = Box::pin(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => parked.recv().unwrap(),
        }
    }
}
