//! `ebm-prover doctor`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ebm_cache::{Cache, OpenMode, RowChecker, StateKey};
use ebm_embed::{Environment, PYTHON_VERSION};
use ebm_encoder::Encoder;
use serde_json::Value;

use crate::backend::BackendEncoder;
use crate::formats::overlap_lines;
use crate::model::{ModelArguments, PythonArguments};
use crate::outcome::Outcome;
use crate::states::read_states;

/// Calls whose median is told.
const CALLS: usize = 9;

/// Check a set-up: interpreter, packages, versions; with a model also its embeddings and timings.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The model's folder, or its hub id.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    model_path: Option<String>,
    /// A cache, to count how many of the states of --states it holds.
    #[arg(long, value_name = "C.parquet", requires = "states")]
    cache: Option<PathBuf>,
    /// States as the prover prints them: a .parquet or .jsonl file, as for `encode`.
    #[arg(long, value_name = "FILE", requires = "cache")]
    states: Option<PathBuf>,
    #[command(flatten)]
    python: PythonArguments,
    #[command(flatten)]
    model: ModelArguments,
}

impl Doctor {
    pub(crate) fn run(&self, out: &mut impl Write) -> anyhow::Result<Outcome> {
        self.model.check(self.model_path.as_deref(), false)?;
        let remote = self.model.backend.is_remote();
        if !remote {
            print_environment(self.python.start()?.environment(), out)?;
        }
        if let (Some(cache), Some(states)) = (&self.cache, &self.states) {
            self.print_overlap(cache, states, out)?;
        }
        if self.model_path.is_none() && self.model.backend.is_in_process() {
            writeln!(out, "\nall good so far; --model-path checks a model as well")?;
            return Ok(Outcome::Good);
        }
        let encoder = self.load(out)?;
        let states: Vec<String> = (0..64).map(state).collect();
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        let rows_are_right = check_rows(&encoder, &states, out)?;
        print_timings(&encoder, &states, out)?;
        if rows_are_right {
            writeln!(out, "\nall good")?;
            return Ok(Outcome::Good);
        }
        writeln!(out, "\nthe embeddings of this model must not be used")?;
        Ok(Outcome::CheckFailed)
    }

    /// How many states of a file a cache holds, and what to do where converting finds more.
    fn print_overlap(
        &self,
        cache: &Path,
        states: &Path,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let texts = read_states(states)?.texts;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let cache = Cache::open(cache, OpenMode::Auto)?;
        let (_, lines) = overlap_lines(&texts, self.model.formats.states_in(), &cache)?;
        for (number, line) in lines.iter().enumerate() {
            writeln!(out, "{:<10} {line}", if number == 0 { "overlap" } else { "" })?;
        }
        Ok(())
    }

    fn load(&self, out: &mut impl Write) -> anyhow::Result<BackendEncoder> {
        let start = Instant::now();
        let encoder = self.model.load(&self.python, self.model_path.as_deref())?;
        if let BackendEncoder::Remote(remote) = &encoder {
            let (took, info) = (start.elapsed(), remote.info());
            writeln!(out, "server     ebm-encode {}, connected in {took:.1?}", info.version())?;
            for part in ["model", "engine"] {
                let said = info.described().get(part).map_or("?".to_owned(), shown);
                writeln!(out, "{part:<10} {said}")?;
            }
            writeln!(out, "dimension  {}", encoder.dim())?;
            writeln!(out, "encoder    {}", encoder.identity().digest())?;
            return Ok(encoder);
        }
        let described = encoder.describe()?;
        let model_path = self.model_path.as_deref().unwrap_or_default();
        let text =
            |pointer: &str| described.pointer(pointer).and_then(|v| v.as_str()).unwrap_or("?");
        writeln!(out, "\nmodel      {model_path}, loaded in {:.1?}", start.elapsed())?;
        writeln!(out, "device     {}", text("/device"))?;
        writeln!(out, "dimension  {}", encoder.dim())?;
        writeln!(out, "encoder    {}", encoder.identity().digest())?;
        writeln!(out, "engine     {}: {}", text("/engine/name"), text("/engine/reason"))?;
        Ok(encoder)
    }
}

fn print_environment(environment: &Environment, out: &mut impl Write) -> anyhow::Result<()> {
    let (python, by) = (environment.executable().display(), environment.found_by());
    writeln!(out, "python     {python} ({by})")?;
    writeln!(out, "version    {}, built for {PYTHON_VERSION}", environment.version())?;
    writeln!(out, "prefix     {}", environment.prefix().display())?;
    let packages: Vec<String> =
        environment.packages().map(|(name, version)| format!("{name} {version}")).collect();
    writeln!(out, "packages   {}", packages.join(", "))?;
    Ok(())
}

/// What a server says: a text as it is, anything else as JSON.
fn shown(said: &Value) -> String {
    said.as_str().map_or_else(|| said.to_string(), str::to_owned)
}

/// States that begin alike, as the children of a node do.
fn state(number: usize) -> String {
    format!("n : ℕ\nh : 0 < n\nih : ∀ m < n, m ^ 2 ≤ m ^ 3\n⊢ n + {number} = {number} + n")
}

/// Whether all embeddings pass the row checks, and equal those at batch size 1.
fn check_rows(
    encoder: &BackendEncoder,
    states: &[&str],
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let dim = encoder.dim();
    let mut together = vec![f32::NAN; states.len() * dim];
    let reports = encoder.encode_into(states, &mut together)?;
    let mut right = true;
    for (state, report) in states.iter().zip(&reports) {
        if let Err(reason) = report {
            writeln!(out, "rows       {state:?}: {reason}")?;
            right = false;
        }
    }
    let keys: Vec<StateKey> = states.iter().map(|state| StateKey::of(state)).collect();
    let verdicts = RowChecker::new(dim).check(&keys, &together);
    for (state, bad) in states.iter().zip(verdicts).filter_map(|(s, v)| Some((s, v.err()?))) {
        writeln!(out, "rows       {state:?}: {bad}")?;
        right = false;
    }
    if !right {
        return Ok(false);
    }
    let mut alone = vec![f32::NAN; dim];
    let (mut error, mut scale) = (0_f32, 0_f32);
    for (state, row) in states.iter().zip(together.chunks(dim)).step_by(7) {
        encoder.encode_into(&[state], &mut alone)?;
        let difference = row.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        scale = alone.iter().map(|value| value.abs()).fold(scale, f32::max);
        error = error.max(difference);
    }
    let checked = states.len();
    writeln!(
        out,
        "rows       {checked} pass the checks; unbatched they differ by {:.1e}",
        error / scale
    )?;
    Ok(true)
}

/// Medians of a request's time, and of the part of it that is not Python's.
fn print_timings(
    encoder: &BackendEncoder,
    states: &[&str],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    for count in [1, 8, 32, 64] {
        let states = &states[..count.min(states.len())];
        let mut rows = vec![0.0; states.len() * encoder.dim()];
        let mut times: Vec<(Duration, Duration)> = Vec::new();
        for _ in 0..CALLS {
            let (before, start) = (encoder.in_python(), Instant::now());
            encoder.encode_into(states, &mut rows)?;
            let whole = start.elapsed();
            let in_python = encoder.in_python().saturating_sub(before);
            times.push((whole, whole.saturating_sub(in_python)));
        }
        times.sort_unstable();
        let whole = times[CALLS / 2].0;
        times.sort_unstable_by_key(|(_, outside)| *outside);
        let outside = times[CALLS / 2].1;
        let rate = states.len() as f64 / whole.as_secs_f64();
        let there = match encoder.time() {
            Some(_) => format!(", of which {outside:.1?} to get there"),
            None => String::new(),
        };
        writeln!(
            out,
            "request    of {:>2} states: {whole:.1?} ({rate:.0} states/s){there}",
            states.len()
        )?;
    }
    Ok(())
}
