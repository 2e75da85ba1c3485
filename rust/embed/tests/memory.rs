//! Where embeddings are written, what is allocated for them, and that nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebm_encoder::{Coalescer, CoalescerOptions, Encoder};
use support::{encoder, seen};

/// Counts allocations of one size or more.
struct Counting;

static LEAST: AtomicUsize = AtomicUsize::new(usize::MAX);
static COUNT: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator")]
// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LEAST.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many allocations of at least so many bytes something makes.
fn allocations(bytes: usize, run: impl FnOnce()) -> usize {
    COUNT.store(0, Ordering::Relaxed);
    LEAST.store(bytes, Ordering::Relaxed);
    run();
    LEAST.store(usize::MAX, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed)
}

fn resident_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

// One test: the counts are the process's.
#[test]
fn rows_are_written_where_they_stay_and_memory_is_flat() {
    let encoder = encoder();
    let dim = encoder.dim();
    let texts: Vec<String> = (0..200).map(|i| format!("n : ℕ\n⊢ n ≠ {i}")).collect();
    let states: Vec<&str> = texts.iter().map(String::as_str).collect();
    let size = states.len() * dim * size_of::<f32>();
    let mut memory = vec![0.0; states.len() * dim];
    encoder.encode_into(&states, &mut memory).unwrap();

    let address = memory.as_ptr() as usize;
    let lone = allocations(size, || {
        encoder.encode_into(&states, &mut memory).unwrap();
    });
    assert_eq!(lone, 0, "beside Python's array the caller's buffer is all there is");
    let (given, count) = seen().pop().unwrap();
    assert_eq!(count, 200);
    assert_ne!(given, address, "what Python keeps of its array is not the caller's memory");

    let few = ["⊢ True"];
    let mut some = vec![0.0; few.len() * dim];
    encoder.encode_into(&few, &mut some).unwrap();
    let mut levels = Vec::new();
    for calls in [1_000, 5_000, 5_000] {
        for _ in 0..calls {
            encoder.encode_into(&few, &mut some).unwrap();
        }
        levels.push(resident_kib());
    }
    let grown = levels[2].saturating_sub(levels[0]);
    assert!(grown < 4096, "{grown} KiB more after 10,000 calls: {levels:?}");

    let coalescer = Coalescer::start(encoder, CoalescerOptions::default()).unwrap();
    let shared: Vec<std::sync::Arc<str>> = texts.iter().map(|text| text.as_str().into()).collect();
    let mut answers = Vec::new();
    let batched = allocations(size, || {
        answers = coalescer.submit(shared.iter().cloned()).unwrap().wait().unwrap();
    });
    // The row checks gather the embeddings of a batch.
    assert!(batched <= 2, "one buffer for the batch, and no copy for its caller: {batched}");
    let first = answers[0].as_ref().unwrap().as_ptr() as usize;
    assert_ne!(seen().last(), Some(&(first, 200)), "nor is it the batch's");
    for (index, answer) in answers.iter().enumerate() {
        let row = answer.as_ref().unwrap().as_ptr() as usize;
        assert_eq!(row, first + index * dim * size_of::<f32>());
    }
}
