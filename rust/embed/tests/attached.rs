//! Hosts that use Python themselves: their threads are attached when they call, or they fork.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Coalescer, CoalescerOptions, Encoder, EncoderError,
};
use pyo3::prelude::*;
use support::{encoder, python};

/// Runs something in a thread that is attached to Python all the time; fails if it does not end.
fn attached(work: impl FnOnce() + Send + 'static) {
    python();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        Python::attach(|_| work());
        done.send(()).unwrap();
    });
    is_done.recv_timeout(Duration::from_secs(300)).unwrap();
}

#[test]
fn an_attached_thread_loads_encodes_describes_and_drops() {
    attached(|| {
        let encoder = encoder();
        let mut rows = vec![0.0; encoder.dim()];
        assert!(encoder.encode_into(&["⊢ True"], &mut rows).unwrap()[0].is_ok());
        assert_eq!(encoder.describe().unwrap()["engine"]["name"], "shared-prefix");
        drop(encoder);
    });
}

#[test]
fn an_attached_thread_waits_for_a_coalescer() {
    attached(|| {
        let options = CoalescerOptions::default().with_queue(1);
        let coalescer = Coalescer::start(encoder(), options).unwrap();
        let ask = |i: i32| coalescer.submit([Arc::from(format!("⊢ {i} = {i}"))]).unwrap();
        let pending: Vec<_> = (0..4).map(ask).collect();
        for pending in pending {
            assert!(pending.wait_for(Duration::from_secs(300)).unwrap()[0].is_ok());
        }
        let last = ask(5);
        drop(coalescer);
        assert!(last.wait().unwrap()[0].is_ok());
    });
}

#[test]
fn an_attached_thread_waits_for_a_cached_encoder() {
    attached(|| {
        let options = CachedEncoderOptions::default();
        let cached = CachedEncoder::new(encoder(), None, options).unwrap();
        assert!(cached.encode(&["⊢ True", "⊢ False"]).unwrap().iter().all(Result::is_ok));
        cached.finish(serde_json::json!({})).unwrap();
    });
}

#[test]
fn a_forked_process_is_refused_at_once() {
    let encoder = encoder();
    let coalescer = Coalescer::start(support::encoder(), CoalescerOptions::default()).unwrap();
    // SAFETY: the forked process makes a few calls that are refused, and ends by `_exit`; an alarm
    // ends it if one of them does not return.
    #[expect(unsafe_code, reason = "what is tested")]
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(60);
            let mut rows = vec![0.0; encoder.dim()];
            let direct = encoder.encode_into(&["⊢ True"], &mut rows);
            let queued = coalescer.submit([Arc::from("⊢ True")]);
            let right =
                direct == Err(EncoderError::Forked) && matches!(queued, Err(EncoderError::Forked));
            drop((encoder, coalescer));
            libc::_exit(i32::from(!right));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert_eq!(status, 0);
    let answer = coalescer.submit([Arc::from("⊢ True")]).unwrap().wait().unwrap();
    assert!(answer[0].is_ok());
}
