//! `ebm-prover replay`.

use std::io::{self, IsTerminal, Write};
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use ebm_cache::{Cache, OpenMode};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, CachedEncoderStatistics, CoalescerOptions, Encoder,
};
use ebm_search::state_format::Overlap;
use ebm_search::{RecordedSearch, read_searches};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::formats::{overlap_json, overlap_lines};
use crate::interrupt::Saved;
use crate::model::{ModelArguments, PythonArguments};
use crate::outcome::Outcome;
use crate::text::{one_line, warn};

/// States without an embedding that are shown.
const SHOWN: usize = 5;

/// Walk recorded searches as the searches did, with many theorems at once.
///
/// The children of each expanded node are one request; a search waits for its answer before the next.
/// Embeddings are those of the cache, of earlier requests, or of the model.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Trajectory files (Parquet).
    #[arg(long, value_name = "T.parquet", num_args = 1.., required = true)]
    trajectories: Vec<PathBuf>,
    /// The model's folder, or its hub id.
    #[arg(long, value_name = "DIR_OR_HUB_ID", required_unless_present = "backend")]
    model_path: Option<String>,
    /// A cache of the same encoder, to be asked first.
    #[arg(long, value_name = "C.parquet")]
    cache: Option<PathBuf>,
    /// Cache to which new embeddings are appended, crash-safe.
    #[arg(long, value_name = "FILE.parquet")]
    append_to: Option<PathBuf>,
    /// Searches at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Replay only this many searches.
    #[arg(long, value_name = "N")]
    theorems: Option<usize>,
    /// Memory for embeddings encoded at search time, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// How long a batch waits for other searches, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 3)]
    max_wait: u64,
    /// Most states of one batch.
    #[arg(long, value_name = "STATES", default_value_t = 256)]
    max_batch: usize,
    /// Serve a cache of a different encoder. Its embeddings and new ones are not comparable.
    #[arg(long)]
    allow_other_identity: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    python: PythonArguments,
    #[command(flatten)]
    model: ModelArguments,
}

/// What the searches did, beside what the encoder counts.
#[derive(Debug, Default)]
struct Tally {
    searches: AtomicUsize,
    without_row: AtomicUsize,
}

impl Replay {
    pub(crate) fn run(&self, out: &mut impl Write, saved: &Saved) -> anyhow::Result<Outcome> {
        self.model.check(self.model_path.as_deref(), false)?;
        let mut searches = self.searches()?;
        let open = |path| Cache::open(path, OpenMode::Auto);
        let cache = self.cache.as_ref().map(open).transpose()?;
        let printed = cache.as_ref().map(|cache| self.overlap(&searches, cache)).transpose()?;
        let tally = Tally::default();
        self.convert(&mut searches, &tally)?;
        let encoder = self.model.load(&self.python, self.model_path.as_deref())?;
        let (python_time, described, digest) =
            (encoder.time(), encoder.describe()?, encoder.identity().digest());
        let encoder = Arc::new(CachedEncoder::new(encoder, cache, self.options())?);
        saved.watch(&encoder);
        let bar = bar(&searches);
        let start = Instant::now();
        let walked = self.walk(&searches, &encoder, &tally, &bar);
        let (wall, in_python) = (start.elapsed(), python_time.map(|time| time.so_far()));
        bar.finish_and_clear();
        walked?;
        let statistics = encoder.statistics();
        let encoder = Arc::into_inner(encoder).context("a search still holds the encoder")?;
        let provenance = json!({ "made_by": "ebm-prover replay", "encoder": described });
        let appended = encoder.finish(provenance)?;
        let result = Result {
            tally,
            statistics,
            wall,
            in_python,
            rows_in_file: appended.map(|report| report.rows),
            digest,
            printed,
        };
        if self.json {
            writeln!(out, "{}", result.to_json())?;
        } else {
            result.print(self, out)?;
        }
        let all = result.tally.without_row.load(Ordering::Relaxed) == 0
            && result.statistics.not_appended == 0;
        Ok(if all { Outcome::Good } else { Outcome::CheckFailed })
    }

    fn searches(&self) -> anyhow::Result<Vec<RecordedSearch>> {
        let mut searches = Vec::new();
        for path in &self.trajectories {
            searches.extend(read_searches(path)?);
        }
        searches.truncate(self.theorems.unwrap_or(usize::MAX));
        if searches.is_empty() {
            bail!("--trajectories: there is no state to encode");
        }
        Ok(searches)
    }

    /// What the cache holds of the states as they are printed; warns if converting would find more.
    fn overlap(&self, searches: &[RecordedSearch], cache: &Cache) -> anyhow::Result<Overlap> {
        let states: Vec<&str> = texts(searches).collect();
        let formats = &self.model.formats;
        let (found, lines) = overlap_lines(&states, formats.states_in(), cache)?;
        if found.converted.is_some() && formats.option().is_none() {
            for line in lines {
                warn(&line);
            }
        }
        Ok(found)
    }

    /// States in the encoder's form, so that the cache is asked for what it holds. Those that cannot be
    /// converted have no embedding, and are not asked for.
    fn convert(&self, searches: &mut [RecordedSearch], tally: &Tally) -> anyhow::Result<()> {
        let conversion = self.model.formats.conversion(texts(searches))?;
        for search in searches {
            for request in &mut search.requests {
                request.retain_mut(|state| match conversion.apply(state) {
                    Ok(()) => true,
                    Err(error) => {
                        if tally.without_row.fetch_add(1, Ordering::Relaxed) < SHOWN {
                            warn(&format!("no embedding: {}: {error:#}", search.theorem));
                        }
                        false
                    }
                });
            }
            search.requests.retain(|request| !request.is_empty());
        }
        Ok(())
    }

    fn options(&self) -> CachedEncoderOptions {
        let coalescing = CoalescerOptions::default()
            .with_max_wait(Duration::from_millis(self.max_wait))
            .with_max_states(self.max_batch);
        let options = CachedEncoderOptions::default()
            .with_coalescing(coalescing)
            .with_memory_bytes(self.memory.saturating_mul(1 << 20))
            .with_allow_other_identity(self.allow_other_identity);
        match &self.append_to {
            Some(output) => options.with_append_to(output),
            None => options,
        }
    }

    /// Threads take searches from a queue until there is none left.
    fn walk(
        &self,
        searches: &[RecordedSearch],
        encoder: &CachedEncoder,
        tally: &Tally,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let take = || searches.get(next.fetch_add(1, Ordering::Relaxed));
        thread::scope(|scope| {
            let walkers: Vec<_> = (0..usize::from(self.threads).min(searches.len()))
                .map(|_| {
                    scope.spawn(|| {
                        iter::from_fn(take).try_for_each(|s| walk_one(s, encoder, tally, bar))
                    })
                })
                .collect();
            for walker in walkers {
                walker.join().map_err(|_| anyhow::anyhow!("a search panicked"))??;
            }
            Ok(())
        })
    }
}

fn texts(searches: &[RecordedSearch]) -> impl Iterator<Item = &str> + Clone {
    searches.iter().flat_map(|search| search.requests.iter().flatten()).map(String::as_str)
}

fn walk_one(
    search: &RecordedSearch,
    encoder: &CachedEncoder,
    tally: &Tally,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    for request in &search.requests {
        let states: Vec<&str> = request.iter().map(String::as_str).collect();
        let answers = encoder.encode(&states)?;
        for (state, answer) in states.iter().zip(answers) {
            if let Err(report) = answer
                && tally.without_row.fetch_add(1, Ordering::Relaxed) < SHOWN
            {
                let line =
                    format!("no embedding: {report}: {}: {}", search.theorem, one_line(state));
                bar.suspend(|| warn(&line));
            }
        }
        bar.inc(states.len() as u64);
    }
    tally.searches.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

fn bar(searches: &[RecordedSearch]) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:30} {human_pos}/{human_len} states, {per_sec}, {eta} left";
    let states: usize = searches.iter().map(RecordedSearch::states).sum();
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(states as u64).with_style(style)
}

struct Result {
    tally: Tally,
    statistics: CachedEncoderStatistics,
    wall: Duration,
    /// Nothing where a server encodes.
    in_python: Option<Duration>,
    rows_in_file: Option<u64>,
    digest: String,
    /// What the cache holds of the states as they are printed.
    printed: Option<Overlap>,
}

impl Result {
    fn python_share(&self) -> Option<f64> {
        Some(self.in_python?.as_secs_f64() / self.wall.as_secs_f64())
    }

    fn print(&self, replay: &Replay, out: &mut impl Write) -> io::Result<()> {
        let s = &self.statistics;
        let searches = self.tally.searches.load(Ordering::Relaxed);
        let rate = s.states as f64 / self.wall.as_secs_f64();
        let percent = |part: u64| 100.0 * part as f64 / s.states.max(1) as f64;
        let known = s.cache_hits + s.memory_hits + s.coalesced;
        writeln!(out, "searches   {searches}, {} at a time", replay.threads)?;
        writeln!(
            out,
            "requests   {} of {:.1} states",
            s.requests,
            s.states as f64 / s.requests.max(1) as f64
        )?;
        writeln!(out, "states     {}, {rate:.0} per second", s.states)?;
        writeln!(
            out,
            "hits       {known} ({:.1} %): {} in the cache, {} encoded before, {} being encoded for another",
            percent(known),
            s.cache_hits,
            s.memory_hits,
            s.coalesced
        )?;
        if let Some(printed) = &self.printed {
            writeln!(out, "overlap    {printed}")?;
        }
        let calls = s.encoder.calls.max(1);
        writeln!(
            out,
            "encoded    {} states, {} tokens, in {} calls of {:.1} states; {} calls served several searches",
            s.encoder.encoded,
            s.tokens,
            s.encoder.calls,
            s.encoder.encoded as f64 / calls as f64,
            s.encoder.shared_batches
        )?;
        writeln!(out, "latency    {:.1?} median, {:.1?} p95, {:.1?} p99", s.p50, s.p95, s.p99)?;
        let share =
            self.python_share().map(|share| format!(", {:.1} % of it in Python", 100.0 * share));
        writeln!(out, "time       {:.1?}{}", self.wall, share.unwrap_or_default())?;
        writeln!(out, "encoder    {}", self.digest)?;
        if let (Some(rows), Some(path)) = (self.rows_in_file, &replay.append_to) {
            writeln!(out, "appended   {} now has {rows} rows", path.display())?;
        }
        let without = self.tally.without_row.load(Ordering::Relaxed);
        if without > 0 {
            writeln!(out, "no embedding {without} states")?;
        }
        if s.truncated > 0 {
            writeln!(out, "cut        {} prompts were longer than the model's limit", s.truncated)?;
        }
        if s.not_appended > 0 {
            writeln!(out, "not saved  {} embeddings are not in the output", s.not_appended)?;
        }
        Ok(())
    }

    fn to_json(&self) -> serde_json::Value {
        let s = &self.statistics;
        json!({
            "searches": self.tally.searches.load(Ordering::Relaxed),
            "requests": s.requests,
            "states": s.states,
            "cache_hits": s.cache_hits,
            "memory_hits": s.memory_hits,
            "coalesced": s.coalesced,
            "encoded": s.encoder.encoded,
            "tokens": s.tokens,
            "calls": s.encoder.calls,
            "shared_batches": s.encoder.shared_batches,
            "bad": s.encoder.bad,
            "truncated": s.truncated,
            "not_appended": s.not_appended,
            "without_row": self.tally.without_row.load(Ordering::Relaxed),
            "seconds": self.wall.as_secs_f64(),
            "states_per_second": s.states as f64 / self.wall.as_secs_f64(),
            "latency_ms": {
                "p50": s.p50.as_secs_f64() * 1e3,
                "p95": s.p95.as_secs_f64() * 1e3,
                "p99": s.p99.as_secs_f64() * 1e3,
            },
            "python_share": self.python_share(),
            "encoder": self.digest,
            "rows_in_file": self.rows_in_file,
            "overlap": self.printed.as_ref().map(overlap_json),
        })
    }
}
