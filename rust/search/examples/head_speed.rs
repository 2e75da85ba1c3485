//! Measures a head: `cargo run --release --example head_speed -- HEAD.safetensors [SECONDS] [CACHE]`.
//!
//! Prints one JSON object: milliseconds (medians) for 1, 8, 64 and 1,024 rows through the head, and of its
//! matrix products alone, as plain calls of `gemm`, in turns with it. The weights of those calls are
//! row-major or transposed, and the threads share the rows or the outputs: the fastest of the four counts.
//! With a cache of the head's encoder also 64 of its states from text to score, through a `ValueScorer`.
#![allow(clippy::print_stdout, reason = "a command-line program")]

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use ebm_cache::EmbeddingCache;
use ebm_encoder::{CachedEncoder, CachedEncoderOptions, TestEncoder};
use ebm_search::{EnergyHead, Node, ValueScorer};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;
use serde_json::json;

const ROWS: [usize; 4] = [1, 8, 64, 1024];

/// How plain products are made.
#[derive(Clone, Copy)]
struct Plain {
    transposed: bool,
    share_rows: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: head_speed HEAD.safetensors [SECONDS]")?;
    let seconds = std::env::args().nth(2).map_or(Ok(1.0), |text| text.parse::<f64>())?;
    let head = EnergyHead::open(path)?;
    let mut found = Vec::new();
    for count in ROWS {
        let rows = numbers(count * head.dim());
        let ways = [(false, false), (false, true), (true, false), (true, true)];
        let ways = ways.map(|(transposed, share_rows)| Plain { transposed, share_rows });
        let products = Products::new(&head, count);
        let mut times = vec![Vec::new(); ways.len() + 1];
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            times[0].push(time(|| head.energies(&rows).map(|energies| energies.len())));
            for (way, times) in ways.iter().zip(&mut times[1..]) {
                times.push(time(|| products.run(&rows, *way)));
            }
        }
        let medians: Vec<f64> = times.into_iter().map(median).collect();
        let plain = medians[1..].iter().copied().fold(f64::INFINITY, f64::min);
        found.push(json!({"rows": count, "head_ms": medians[0], "products_ms": plain,
            "ratio": medians[0] / plain}));
    }
    let threads = rayon::current_num_threads();
    let dims = head.dims().to_vec();
    let scored = std::env::args().nth(3).map(|cache| score_cached(head, &cache, seconds));
    let scored = scored.transpose()?;
    println!(
        "{}",
        json!({"dims": dims, "threads": threads, "times": found, "score_64_cached_ms": scored})
    );
    Ok(())
}

/// Milliseconds to score 64 states of a cache: look them up, gather their embeddings, run the head.
fn score_cached(head: EnergyHead, cache: &str, seconds: f64) -> Result<f64, Box<dyn Error>> {
    let cache = EmbeddingCache::open(Path::new(cache))?;
    let states: Vec<String> = cache.iter().take(64).map(|(state, _)| state.to_owned()).collect();
    let encoder = TestEncoder::new(head.dim(), head.identity().clone())?;
    let options = CachedEncoderOptions::default();
    let scorer = ValueScorer::new(CachedEncoder::new(encoder, Some(cache.into()), options)?, head)?;
    let nodes: Vec<Node<'_>> = states.iter().map(|state| Node::Open(state)).collect();
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        times.push(time(|| scorer.score(&nodes)));
    }
    let missed = scorer.encoder().statistics().encoder.encoded;
    assert_eq!(missed, 0, "all states are in the cache");
    Ok(median(times))
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|place| ((place % 1013) as f32 / 506.0) - 1.0).collect()
}

fn time<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The products of a head's layers, with made-up weights, and room for what they give.
struct Products {
    layers: Vec<[usize; 2]>,
    weights: Vec<Vec<f32>>,
    count: usize,
    members: usize,
}

impl Products {
    fn new(head: &EnergyHead, count: usize) -> Self {
        let layers: Vec<[usize; 2]> =
            head.dims().windows(2).map(|pair| [pair[0], pair[1]]).collect();
        let weights = layers.iter().map(|[inputs, outputs]| numbers(inputs * outputs)).collect();
        Self { layers, weights, count, members: head.members() }
    }

    fn run(&self, rows: &[f32], way: Plain) -> usize {
        let mut last = 0;
        for _ in 0..self.members {
            let mut input = rows.to_vec();
            for ([inputs, outputs], weight) in self.layers.iter().zip(&self.weights) {
                input = product(&input, weight, [self.count, *inputs, *outputs], way);
            }
            last += black_box(&input).len();
        }
        last
    }
}

/// `rows [count, inputs]` times the transposed `weight [outputs, inputs]`.
fn product(
    rows: &[f32],
    weight: &[f32],
    [count, inputs, outputs]: [usize; 3],
    way: Plain,
) -> Vec<f32> {
    let threads = rayon::current_num_threads();
    // One block of rows and all outputs, or all rows and one block of outputs: `[outputs, rows]` then.
    if way.share_rows {
        let block = count.div_ceil(threads);
        let mut out = vec![0.0; count * outputs];
        out.par_chunks_mut(block * outputs).zip(rows.par_chunks(block * inputs)).for_each(
            |(out, rows)| {
                let sizes = [rows.len() / inputs, inputs, outputs];
                call(rows, weight, sizes, outputs, [outputs, 1], out, way);
            },
        );
        return out;
    }
    let block = outputs.div_ceil(threads);
    let mut out = vec![0.0; count * outputs];
    out.par_chunks_mut(block * count).enumerate().for_each(|(number, out)| {
        let width = out.len() / count;
        let start = number * block;
        let part = if way.transposed { &weight[start..] } else { &weight[start * inputs..] };
        call(rows, part, [count, inputs, width], outputs, [1, count], out, way);
    });
    out
}

fn call(
    rows: &[f32],
    weight: &[f32],
    [count, inputs, width]: [usize; 3],
    outputs: usize,
    [row_stride, column_stride]: [usize; 2],
    out: &mut [f32],
    way: Plain,
) {
    let stride = |length: usize| isize::try_from(length).unwrap_or(isize::MAX);
    let [weight_input, weight_output] = if way.transposed { [outputs, 1] } else { [1, inputs] };
    assert!(rows.len() == count * inputs && out.len() == count * width, "shapes");
    let last = (inputs - 1) * weight_input + (width - 1) * weight_output;
    assert!(last < weight.len(), "shapes");
    // SAFETY: sizes and strides stay within the slices, as was just asserted; `out` is written alone.
    #[expect(unsafe_code, reason = "the library takes pointers")]
    unsafe {
        gemm(
            count,
            width,
            inputs,
            out.as_mut_ptr(),
            stride(column_stride),
            stride(row_stride),
            false,
            rows.as_ptr(),
            1,
            stride(inputs),
            weight.as_ptr(),
            stride(weight_output),
            stride(weight_input),
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
