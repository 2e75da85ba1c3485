//! Times requests through the bridge, for `benchmarks/bridge`; prints one JSON object.

use std::ffi::CString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use ebm_embed::{Interpreter, PythonEncoder, PythonEncoderOptions};
use ebm_encoder::{Coalescer, CoalescerOptions, Encoder};
use pyo3::prelude::*;
use serde_json::json;

/// Time requests through the bridge.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    model_path: String,
    /// A JSON list of texts.
    #[arg(long)]
    states: PathBuf,
    /// Python to run before the model is loaded.
    #[arg(long)]
    before: Option<PathBuf>,
    /// States per request.
    #[arg(long, num_args = 1.., default_values_t = [1, 8, 32, 64])]
    sizes: Vec<usize>,
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Callers at the same time, in the second part.
    #[arg(long, default_value_t = 16)]
    callers: usize,
    /// Requests of each of them, of 8 states; 0 leaves that part out.
    #[arg(long, default_value_t = 0)]
    requests: usize,
}

const STATES_OF_A_CALLER: usize = 8;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let texts: Vec<String> = serde_json::from_slice(&fs::read(&arguments.states)?)?;
    let python = Interpreter::start(None)?;
    if let Some(path) = &arguments.before {
        let code = CString::new(fs::read(path)?)?;
        Python::attach(|py| py.run(&code, None, None)).context("the Python to run before")?;
    }
    let encoder = PythonEncoder::load(python, &PythonEncoderOptions::new(&arguments.model_path))?;
    let mut lone = serde_json::Map::new();
    let mut through_queue = serde_json::Map::new();
    for &size in &arguments.sizes {
        let states: Vec<&str> = texts.iter().take(size).map(String::as_str).collect();
        let mut rows = vec![0.0; size * encoder.dim()];
        let times =
            median_micros(arguments.calls, || encoder.encode_into(&states, &mut rows).map(drop))?;
        lone.insert(size.to_string(), times.into());
    }
    let one_at_a_time =
        (arguments.requests > 0).then(|| one_at_a_time(&encoder, &texts, &arguments));
    let coalescer = Coalescer::start(encoder, CoalescerOptions::default())?;
    for &size in &arguments.sizes {
        let states: Vec<Arc<str>> =
            texts.iter().take(size).map(|text| text.as_str().into()).collect();
        let times = median_micros(arguments.calls, || {
            coalescer.submit(states.iter().cloned())?.wait().map(drop)
        })?;
        through_queue.insert(size.to_string(), times.into());
    }
    let together = (arguments.requests > 0).then(|| together(&coalescer, &texts, &arguments));
    let result = json!({
        "lone_us": lone,
        "queue_us": through_queue,
        "one_at_a_time": one_at_a_time.transpose()?,
        "together": together.transpose()?,
    });
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{result}");
    }
    Ok(())
}

/// Median time of a call in microseconds, after a tenth as many to warm up.
fn median_micros<E>(calls: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    for _ in 0..calls / 10 {
        call()?;
    }
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[calls / 2])
}

/// The states of a request: each caller asks for its own, from all over the texts.
fn request(texts: &[String], caller: usize, number: usize, requests: usize) -> Vec<&str> {
    let first = (caller * requests + number) * STATES_OF_A_CALLER;
    (first..first + STATES_OF_A_CALLER).map(|i| texts[i % texts.len()].as_str()).collect()
}

/// States per second where callers wait for each other.
fn one_at_a_time(
    encoder: &PythonEncoder,
    texts: &[String],
    arguments: &Arguments,
) -> anyhow::Result<f64> {
    let mut rows = vec![0.0; STATES_OF_A_CALLER * encoder.dim()];
    let start = Instant::now();
    for number in 0..arguments.requests {
        for caller in 0..arguments.callers {
            let states = request(texts, caller, number, arguments.requests);
            encoder.encode_into(&states, &mut rows)?;
        }
    }
    Ok(rate(arguments, start))
}

/// States per second where callers share batches.
fn together(coalescer: &Coalescer, texts: &[String], arguments: &Arguments) -> anyhow::Result<f64> {
    let start = Instant::now();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..arguments.callers)
            .map(|caller| {
                scope.spawn(move || {
                    (0..arguments.requests).try_for_each(|number| {
                        let states = request(texts, caller, number, arguments.requests);
                        coalescer.submit(states.into_iter().map(Arc::from))?.wait().map(drop)
                    })
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| {
            caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
            anyhow::Ok(())
        })
    })?;
    Ok(rate(arguments, start))
}

fn rate(arguments: &Arguments, start: Instant) -> f64 {
    let states = arguments.callers * arguments.requests * STATES_OF_A_CALLER;
    states as f64 / start.elapsed().as_secs_f64()
}
