//! What scores states: a head over embeddings, or a rule.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use ebm_cache::{Cache, Identity, OpenMode};
use ebm_embed::{PythonEncoder, PythonPolicy, PythonPolicyOptions};
use ebm_encoder::{
    CachedEncoder, CachedEncoderOptions, Encoder, EncoderResult, NoEmbedding, Report,
};
use ebm_search::search::{RuleScorer, Scorer};
use ebm_search::state_format::{StateFormat, source_format};
use ebm_search::{EnergyHead, Recording, Score, Scored, ValueScorer};
use serde_json::{Value, json};

use super::Search;
use super::ranking::Order;
use crate::formats::format_of;
use crate::interrupt::Saved;

/// The oracle's score of a state without a recorded proof.
const NOT_PROVED: f32 = -1e9;

#[derive(Debug, Args)]
#[command(next_help_heading = "Scores")]
pub(super) struct ScorerArguments {
    /// The head file, of `ebm-encode train-head`.
    #[arg(long, value_name = "HEAD.safetensors")]
    pub(super) head: Option<PathBuf>,
    /// A cache of the head's encoder, to be asked first.
    #[arg(long, value_name = "C.parquet")]
    cache: Option<PathBuf>,
    /// The encoder's model: its folder, or its hub id. Without it, states that are not in the cache have no
    /// score.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    pub(super) model_path: Option<String>,
    /// Cache to which new embeddings are appended, crash-safe.
    #[arg(long, value_name = "FILE.parquet")]
    pub(super) append_to: Option<PathBuf>,
    /// Memory for embeddings encoded during the search, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
}

type Rule = Box<dyn Fn(&str, &str) -> Score + Send + Sync>;

/// Where scores come from, before a model is loaded.
pub(super) enum Scores {
    None,
    Head { head: Box<EnergyHead>, cache: Option<Cache>, digest: String, encodes: bool },
    Rule { name: &'static str, rule: Rule },
}

/// Where scores come from.
pub(super) enum Started {
    None,
    Head(ValueScorer),
    Rule(RuleScorer<Rule>),
}

impl ScorerArguments {
    /// The files that are read, with their options.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [("--head", &self.head), ("--cache", &self.cache)];
        files.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?)))
    }

    pub(super) fn open(
        &self,
        search: &Search,
        recording: Option<&Arc<Recording>>,
    ) -> anyhow::Result<Scores> {
        let order = search.ranking.order(self.head.is_some());
        let rule = match order {
            Order::Shortest => Some(("shortest", shortest())),
            Order::Random => Some(("random", random(search.seed))),
            Order::Oracle => Some(("oracle", oracle(recording)?)),
            _ => None,
        };
        if let Some((name, rule)) = rule {
            return Ok(Scores::Rule { name, rule });
        }
        let backend = &search.model.backend;
        let Some(path) = &self.head else {
            if !backend.is_in_process() {
                bail!("--backend: serves a head\nhint: give --head HEAD.safetensors");
            }
            return Ok(Scores::None);
        };
        let head = EnergyHead::open(path)?;
        let open = |path| Cache::open(path, OpenMode::Auto);
        let cache = self.cache.as_ref().map(open).transpose()?;
        if let Some(cache) = &cache {
            head.require_cache(cache)?;
        }
        let encodes = self.model_path.is_some() || backend.is_remote();
        if cache.is_none() && !encodes {
            bail!("--head: needs embeddings\nhint: give --cache, --model-path, or both");
        }
        let takes = format_of(Some(head.identity()))?.option();
        if let Some(wanted) = search.model.formats.option().filter(|wanted| *wanted != takes) {
            bail!(
                "--state-format {wanted}: the head's encoder takes {takes}\nhint: leave it out, or give \
                 --state-format {takes}"
            );
        }
        let digest = ebm_cache::storage::read_file(path)?
            .map(|bytes| blake3::hash(&bytes).to_hex()[..32].to_owned());
        let digest = digest.with_context(|| format!("{}: is gone", path.display()))?;
        Ok(Scores::Head { head: Box::new(head), cache, digest, encodes })
    }
}

impl Scores {
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn by_rule(&self) -> bool {
        matches!(self, Self::Rule { .. })
    }

    pub(super) fn head(&self) -> Option<&EnergyHead> {
        match self {
            Self::Head { head, .. } => Some(head),
            _ => None,
        }
    }

    /// What the scores depend on.
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Head { head, digest, encodes, .. } => json!({
                "head": digest, "encoder": head.identity().digest(), "encodes": encodes,
            }),
            Self::Rule { name, .. } => json!({ "rule": name }),
        }
    }

    /// Loads the model, if there is one, and with it a policy that shares its weights, if one is wanted.
    pub(super) fn start(
        self,
        search: &Search,
        saved: &Saved,
        printed: Printed<'_>,
        beside: Option<&PythonPolicyOptions>,
    ) -> anyhow::Result<(Started, Option<PythonPolicy>)> {
        let (head, cache) = match self {
            Self::None => return Ok((Started::None, None)),
            Self::Rule { rule, .. } => return Ok((Started::Rule(RuleScorer(rule)), None)),
            Self::Head { head, cache, .. } => (head, cache),
        };
        let arguments = &search.scorer;
        let mut options = CachedEncoderOptions::default()
            .with_memory_bytes(arguments.memory.saturating_mul(1 << 20));
        if let Some(output) = &arguments.append_to {
            options = options.with_append_to(output);
        }
        let mut policy = None;
        let encoder: Box<dyn Encoder> = match &arguments.model_path {
            _ if search.model.backend.is_remote() => {
                Box::new(search.model.load(&search.python, None)?)
            }
            Some(model) => {
                let wanted = search.model.encoder_options(model)?;
                let wanted = wanted.with_keep_head(beside.is_some());
                let encoder = PythonEncoder::load(search.python.start()?, &wanted)?;
                if let Some(options) = beside {
                    policy = Some(PythonPolicy::beside(&encoder, options.clone())?);
                }
                Box::new(encoder)
            }
            None => Box::new(CacheOnly { dim: head.dim(), identity: head.identity().clone() }),
        };
        let encoder = Arc::new(CachedEncoder::new(encoder, cache, options)?);
        saved.watch(&encoder);
        let wanted = format_of(Some(encoder.identity()))?;
        let scorer = ValueScorer::new(encoder, *head)?;
        let scorer = match (wanted, printed) {
            (StateFormat::AsGiven, _) => scorer,
            (_, Printed::As(format)) => scorer.with_states_in(format)?,
            (_, Printed::In(recording)) => {
                let texts = recording.theorems().iter().filter_map(|name| recording.root(name));
                let from = source_format(search.model.formats.states_in(), wanted, texts)?;
                scorer.with_states_in(from)?
            }
        };
        Ok((Started::Head(scorer), policy))
    }
}

/// The form in which the environment prints states.
#[derive(Clone, Copy)]
pub(super) enum Printed<'a> {
    /// This one.
    As(StateFormat),
    /// That of the record, which shows it or is said by option.
    In(&'a Recording),
}

impl Started {
    pub(super) fn scorer(&self) -> Option<&dyn Scorer> {
        match self {
            Self::None => None,
            Self::Head(scorer) => Some(scorer),
            Self::Rule(rule) => Some(rule),
        }
    }

    /// Commits embeddings that are to be appended.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Self::Head(scorer) = self else { return Ok(()) };
        let provenance = json!({ "made_by": "ebm-prover search" });
        scorer.encoder().commit(provenance)?;
        Ok(())
    }
}

/// An encoder that encodes nothing: only what is in the cache has a score.
struct CacheOnly {
    dim: usize,
    identity: Identity,
}

impl Encoder for CacheOnly {
    fn dim(&self) -> usize {
        self.dim
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn encode_into(&self, states: &[&str], _rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        let reason = "is not in the cache, and there is no --model-path or --server to encode it";
        let missing = || Err(NoEmbedding::Failed { reason: reason.to_owned() });
        Ok(states.iter().map(|_| missing()).collect())
    }
}

fn shortest() -> Rule {
    Box::new(|_, state| by_rule(-(state.chars().count() as f32)))
}

/// A number for each theorem and state that depends on nothing else but the seed.
fn random(seed: u64) -> Rule {
    Box::new(move |theorem, state| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(theorem.as_bytes()).update(b"\0");
        let digest = hasher.update(state.as_bytes()).finalize();
        let bytes = [digest.as_bytes()[0], digest.as_bytes()[1], digest.as_bytes()[2]];
        let number = u32::from(bytes[0]) << 16 | u32::from(bytes[1]) << 8 | u32::from(bytes[2]);
        by_rule(number as f32)
    })
}

fn oracle(recording: Option<&Arc<Recording>>) -> anyhow::Result<Rule> {
    let recording = recording.context("--ranking oracle: needs --trajectories")?;
    let distances: HashMap<String, _> = recording
        .theorems()
        .iter()
        .map(|theorem| (theorem.clone(), recording.distances(theorem)))
        .collect();
    Ok(Box::new(move |theorem, state| {
        let distance = distances.get(theorem).and_then(|known| known.get(state));
        by_rule(distance.map_or(NOT_PROVED, |distance| -(*distance as f32)))
    }))
}

fn by_rule(score: f32) -> Score {
    Score::Scored(Scored::by_rule(score))
}
