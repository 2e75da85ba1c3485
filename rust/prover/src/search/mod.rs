//! `ebm-prover search`.

mod applicable;
mod environments;
mod outputs;
mod policies;
mod ranking;
mod report;
mod scorers;
mod tally;
mod theorems;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use ebm_search::Recording;
use ebm_search::record::{Existing, TheoremSummary, TrajectoryWriter};
use ebm_search::search::{Cancel, Control, Limits, Search as Searcher, SearchOptions, Theorem};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use self::environments::EnvironmentArguments;
use self::policies::PolicyArguments;
use self::ranking::RankingArguments;
use self::report::Report;
use self::scorers::ScorerArguments;
use self::tally::Tally;
use crate::given::Given;
use crate::interrupt::Saved;
use crate::model::{ModelArguments, PythonArguments};
use crate::outcome::Outcome;
use crate::text::warn;

/// Search for proofs, best first, with a policy and perhaps an energy head.
///
/// Each search ends at its first verified proof (unless --record-after-proof) or at a limit. The trees go to
/// --output, in the trajectory schema, as theorems are finished; interrupt it any time, and --resume.
/// Exit code 1 if a search failed, if states have no score, or if states have no candidates, except where a
/// record has none for them.
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Theorems: JSON lines with `theorem_name` and `statement`, or a .lean file with lines `theorem ...`.
    #[arg(long, value_name = "FILE", required_unless_present = "trajectories")]
    theorems: Option<PathBuf>,
    /// Recorded searches (Parquet): the environment of a replay, the recorded policy's candidates, and,
    /// without --theorems, the theorems.
    #[arg(long, value_name = "T.parquet", num_args = 1..)]
    trajectories: Vec<PathBuf>,
    #[command(flatten)]
    environment: EnvironmentArguments,
    #[command(flatten)]
    policy: PolicyArguments,
    #[command(flatten)]
    ranking: RankingArguments,
    #[command(flatten)]
    scorer: ScorerArguments,
    /// Most expansions per theorem.
    #[arg(long, value_name = "N", default_value_t = 600, help_heading = "Limits")]
    max_expansions: u64,
    /// Most distinct states per theorem.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, help_heading = "Limits")]
    max_states: u64,
    /// Most tactics that are applied per theorem.
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_tactics: Option<u64>,
    /// States at this depth are not expanded.
    #[arg(long, value_name = "N", help_heading = "Limits")]
    max_depth: Option<u32>,
    /// Most seconds per theorem.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Limits")]
    timeout: Option<f64>,
    /// Search only this many theorems.
    #[arg(long, value_name = "N", help_heading = "Limits")]
    first: Option<usize>,
    /// States of a theorem that are expanded together. More than 1 changes the order of expansions.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Expansions after the first proof, for the record.
    #[arg(long, value_name = "N", default_value_t = 0)]
    record_after_proof: u64,
    /// Theorems at the same time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Seed of whatever draws at random: a sampled policy, the random ranking.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Trajectory file (Parquet) to write the searches to.
    #[arg(long, value_name = "T.parquet")]
    output: Option<PathBuf>,
    /// Add to the output; theorems that are in it are not searched again.
    #[arg(long, requires = "output", conflicts_with = "overwrite")]
    resume: bool,
    /// Replace the output.
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    python: PythonArguments,
    #[command(flatten)]
    model: ModelArguments,
    /// Which of these stand on the command line.
    #[arg(skip)]
    pub(crate) given: Given,
}

/// The finished output.
struct Written {
    path: PathBuf,
    rows: u64,
    theorems: Vec<TheoremSummary>,
}

impl Written {
    fn finish(writer: TrajectoryWriter, order: &[String]) -> anyhow::Result<Self> {
        let path = writer.output().to_owned();
        let theorems = writer.finished().values().cloned().collect();
        Ok(Self { path, rows: writer.finish(order)?, theorems })
    }
}

impl Search {
    pub(crate) fn run(&self, out: &mut impl Write, saved: &Saved) -> anyhow::Result<Outcome> {
        let cancel = Cancel::default();
        saved.stop(&cancel);
        let ended = self.search(out, saved, &cancel);
        let Some(code) = saved.interrupted() else { return ended };
        if let Err(error) = ended {
            warn(&format!("{error:#}"));
        }
        let left = "; --resume goes on with the theorems that are left";
        warn(&format!("interrupted{}", if self.output.is_some() { left } else { "" }));
        Ok(Outcome::Interrupted(code))
    }

    fn search(
        &self,
        out: &mut impl Write,
        saved: &Saved,
        cancel: &Cancel,
    ) -> anyhow::Result<Outcome> {
        let model_path = self.scorer.model_path.as_deref();
        self.model.check(model_path, self.policy.uses_model())?;
        self.python.check()?;
        applicable::check(self)?;
        self.check_outputs()?;
        let control = Control::new(cancel.clone());
        let options = self.options()?;
        let recording = self.recording()?.map(Arc::new);
        let mut theorems = self.theorems(recording.as_deref())?;
        theorems.truncate(self.first.unwrap_or(usize::MAX));
        let names: Vec<String> = theorems.iter().map(|theorem| theorem.name.clone()).collect();
        // What fails at once comes before what takes minutes.
        let source = self.scorer.open(self, recording.as_ref())?;
        let options = options.with_ranking(self.ranking.ranking(source.head(), source.by_rule())?);
        if options.ranking.needs_scores() && source.is_none() {
            bail!(
                "--ranking: needs scores\nhint: give --head and --cache, --model-path or --server"
            );
        }
        let (environment, described) = self.environment.open(self, recording.as_ref(), &control)?;
        let (proposer, policy_settings) = self.policy.open(self, recording.as_ref(), &control)?;
        let settings = self.settings(&options, &described, &policy_settings, &source.describe());
        let mut writer = self.writer(&settings)?;
        if let Some(writer) = &writer {
            require_same_statements(&theorems, writer)?;
            theorems.retain(|theorem| !writer.finished().contains_key(&theorem.name));
        }
        let resumed = names.len() - theorems.len();
        let printed = self.environment.printed(self, recording.as_ref());
        // Only an encoder in this process has weights to share.
        let shared = self.scorer.model_path.as_ref().filter(|_| self.model.backend.is_in_process());
        let beside = proposer.beside(shared);
        let (started, loaded) = source.start(self, saved, printed, beside)?;
        let policy = proposer.start(self, loaded)?;
        let mut searcher = Searcher::new(&*environment, &*policy, &options);
        if let Some(scorer) = started.scorer() {
            searcher = searcher.with_scorer(scorer);
        }
        let bar = bar(theorems.len());
        let mut tally = Tally::new(self.policy.knows_all(self.is_live()));
        let start = Instant::now();
        let threads = usize::from(self.threads);
        let timings = searcher.run_all_with_ticks(&theorems, threads, cancel, |search| {
            if let Some(search) = search {
                return tally.take(&search, writer.as_mut(), &bar);
            }
            // What finished must not wait in memory for the next to finish.
            Ok(writer.as_mut().map_or(Ok(()), TrajectoryWriter::flush_if_due)?)
        });
        let wall = start.elapsed();
        bar.finish_and_clear();
        // Also after an error: what is finished is kept.
        let written = writer.map(|writer| Written::finish(writer, &names));
        started.finish()?;
        let timings = timings?;
        let outcome = tally.outcome();
        let report =
            Report::new(&names, resumed, tally, written.transpose()?, wall, timings, settings);
        if self.json {
            writeln!(out, "{}", report.to_json())?;
        } else {
            report.print(out)?;
        }
        Ok(outcome)
    }

    /// Refuses outputs that cannot be, or that would destroy an input.
    fn check_outputs(&self) -> anyhow::Result<()> {
        let mut inputs: Vec<(&str, &Path)> = Vec::new();
        inputs.extend(self.theorems.iter().map(|path| ("--theorems", path.as_path())));
        inputs.extend(self.trajectories.iter().map(|path| ("--trajectories", path.as_path())));
        inputs.extend(self.policy.files());
        inputs.extend(self.scorer.files());
        let appended = self.scorer.append_to.iter().map(|path| ("--append-to", path.as_path()));
        if let Some(output) = &self.output {
            outputs::require_folder("--output", output)?;
            let others: Vec<_> = inputs.iter().copied().chain(appended.clone()).collect();
            outputs::require_other("--output", output, &others)?;
        }
        // Appending to the cache that is asked is what one wants; all other inputs are no caches.
        inputs.retain(|(option, _)| *option != "--cache");
        appended
            .into_iter()
            .try_for_each(|(option, path)| outputs::require_other(option, path, &inputs))
    }

    fn is_live(&self) -> bool {
        self.environment.is_live(self.theorems.is_some())
    }

    fn recording(&self) -> anyhow::Result<Option<Recording>> {
        if self.trajectories.is_empty() {
            return Ok(None);
        }
        let recording = Recording::read(&self.trajectories)?;
        let counts = recording.counts();
        for (count, what) in [
            (counts.without_parent, "rows without a step to them"),
            (counts.ambiguous_tactics, "steps whose tactic leads to two states; the first is used"),
        ] {
            if count > 0 {
                warn(&format!("--trajectories: {count} {what}"));
            }
        }
        if !recording.has_policy() && self.policy.is_recorded(self.is_live()) {
            warn(&format!(
                "--trajectories: {}, so the recorded policy holds all recorded tactics alike",
                match recording.files_without_policy() {
                    count if count < self.trajectories.len() => {
                        format!(
                            "{count} of {} files have no log-probabilities",
                            self.trajectories.len()
                        )
                    }
                    _ => "there are no log-probabilities".to_owned(),
                }
            ));
        }
        Ok(Some(recording))
    }

    fn theorems(&self, recording: Option<&Recording>) -> anyhow::Result<Vec<Theorem>> {
        if let Some(path) = &self.theorems {
            return theorems::read_theorems(path);
        }
        let recording = recording.context("--theorems, or --trajectories, is needed")?;
        Ok(self.environment.theorems_of(recording))
    }

    fn options(&self) -> anyhow::Result<SearchOptions> {
        let time = match self.timeout {
            None => None,
            Some(seconds) => Some(
                Duration::try_from_secs_f64(seconds)
                    .ok()
                    .filter(|time| !time.is_zero())
                    .with_context(|| {
                        format!("--timeout: is {seconds}, expected seconds above 0")
                    })?,
            ),
        };
        let limits = Limits::default()
            .with_expansions(self.max_expansions)
            .with_states(self.max_states)
            .with_tactics(self.max_tactics.unwrap_or(u64::MAX))
            .with_depth(self.max_depth.unwrap_or(u32::MAX))
            .with_time(time);
        Ok(SearchOptions::default()
            .with_limits(limits)
            .with_batch(usize::from(self.batch))
            .with_record_after_proof(self.record_after_proof))
    }

    /// What the results depend on.
    fn settings(
        &self,
        options: &SearchOptions,
        environment: &Value,
        policy: &Value,
        scorer: &Value,
    ) -> Value {
        let ranking = options.ranking;
        json!({
            "environment": environment,
            "policy": policy,
            "scorer": scorer,
            "ranking": {
                "breadth_first": ranking.breadth_first,
                "weight": ranking.weight,
                "depth_exponent": ranking.depth_exponent,
                "value": [ranking.value.mean, ranking.value.deviation],
                "policy": [ranking.policy.mean, ranking.policy.deviation],
                "exploration": ranking.exploration,
            },
            "limits": {
                "expansions": self.max_expansions,
                "states": self.max_states,
                "tactics": self.max_tactics,
                "depth": self.max_depth,
                "seconds": self.timeout,
            },
            "batch": self.batch,
            "record_after_proof": self.record_after_proof,
            "seed": self.seed,
        })
    }

    fn writer(&self, settings: &Value) -> anyhow::Result<Option<TrajectoryWriter>> {
        let Some(output) = &self.output else { return Ok(None) };
        let existing = match (self.resume, self.overwrite) {
            (true, _) => Existing::Resume,
            (_, true) => Existing::Overwrite,
            _ => Existing::Refuse,
        };
        Ok(Some(TrajectoryWriter::open(output, settings.clone(), existing)?))
    }
}

/// A theorem that was searched before must say what it said then.
fn require_same_statements(theorems: &[Theorem], writer: &TrajectoryWriter) -> anyhow::Result<()> {
    for theorem in theorems {
        let Some(known) = writer.finished().get(&theorem.name) else { continue };
        if known.statement != theorem.statement {
            bail!(
                "{}: theorem {:?} has another statement there: {:?}\nhint: give it another name, or \
                 write to another --output",
                writer.output().display(),
                theorem.name,
                known.statement.as_deref().unwrap_or_default()
            );
        }
    }
    Ok(())
}

fn bar(theorems: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:30} {human_pos}/{human_len} theorems, {msg}, {per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(theorems as u64).with_style(style)
}
