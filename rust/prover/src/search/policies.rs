//! What proposes tactics: options.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum, value_parser};
use ebm_embed::{Decoding, PythonPolicy, PythonPolicyOptions};
use ebm_search::Recording;
use ebm_search::policies::{
    HttpApi, HttpPolicy, HttpPolicyError, HttpPolicyOptions, RecordedPolicy, TacticList,
    UniformPolicy,
};
use ebm_search::search::{Control, Policy, PolicyError};
use serde_json::{Value, json};

use super::Search;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// What --trajectories recorded, with its log-probabilities.
    Recorded,
    /// All candidates alike: in a replay the recorded ones, else those of a list of tactics.
    Uniform,
    /// A causal language model in this process.
    Hf,
    /// A server with OpenAI's endpoints, such as vLLM or SGLang.
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Api {
    Completions,
    Chat,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Policy")]
pub(super) struct PolicyArguments {
    /// What proposes tactics; by default recorded in a replay, else uniform.
    #[arg(long, value_name = "KIND")]
    policy: Option<Kind>,
    /// List of tactics for the uniform policy: one per line, with {h} for each hypothesis and {new} for unused
    /// names; by default one for core Lean.
    #[arg(long, value_name = "FILE")]
    tactics: Option<PathBuf>,
    /// The hf policy's model; by default --model-path.
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    policy_model: Option<String>,
    /// The http policy's server: `http://127.0.0.1:8000`.
    #[arg(long, value_name = "URL")]
    policy_url: Option<String>,
    /// The model as the server calls it; by default the only one that it serves.
    #[arg(long, value_name = "NAME")]
    policy_server_model: Option<String>,
    /// The server's endpoint.
    #[arg(long, value_name = "API", default_value = "completions")]
    policy_api: Api,
    /// Environment variable that holds the server's API key.
    #[arg(long, value_name = "VARIABLE")]
    policy_api_key: Option<String>,
    /// Seconds for one request to the server.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    policy_timeout: f64,
    /// Prompt of a language model: `raw`, the state alone, or a file with `{state}` in it, where a new line at
    /// its end counts.
    #[arg(long, value_name = "TEMPLATE", default_value = "raw")]
    policy_template: String,
    /// Samples, or beams, of a language model for each state.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u32).range(1..))]
    candidates: u32,
    /// Temperature of a language model's samples.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Most tokens of a tactic.
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = value_parser!(u32).range(1..))]
    max_tactic_tokens: u32,
    /// Search the tactics by beams instead of samples (hf).
    #[arg(long)]
    pub(super) beam: bool,
}

/// The template that is the state alone.
const RAW: &str = "raw";

/// How the names of files end that models are made of.
const MODEL_FILES: [&str; 8] = ["bin", "jinja", "json", "model", "pt", "py", "safetensors", "txt"];

/// A policy, perhaps before its model is loaded.
pub(super) enum Proposer {
    Ready(Box<dyn Policy>),
    Model { model: String, options: PythonPolicyOptions },
}

impl Proposer {
    fn ready(policy: impl Policy + 'static) -> Self {
        Self::Ready(Box::new(policy))
    }

    /// The options of a policy that shares its weights with the encoder of this model.
    pub(super) fn beside(&self, encoder: Option<&String>) -> Option<&PythonPolicyOptions> {
        match self {
            Self::Model { model, options } if encoder == Some(model) => Some(options),
            _ => None,
        }
    }

    /// The policy; loads the model, unless it is there already.
    pub(super) fn start(
        self,
        search: &Search,
        loaded: Option<PythonPolicy>,
    ) -> anyhow::Result<Box<dyn Policy>> {
        Ok(match (self, loaded) {
            (Self::Ready(policy), _) => policy,
            (Self::Model { .. }, Some(policy)) => Box::new(policy),
            (Self::Model { model, options }, None) => {
                let model = search.model.options(&model);
                Box::new(PythonPolicy::load(search.python.start()?, &model, options)?)
            }
        })
    }
}

fn seed(search: &Search) -> anyhow::Result<i64> {
    i64::try_from(search.seed).context("--seed: is too large")
}

impl PolicyArguments {
    pub(super) fn kind(&self, live: bool) -> Kind {
        self.policy.unwrap_or(if live { Kind::Uniform } else { Kind::Recorded })
    }

    /// Whether the policy should have candidates for every state: a record has not.
    pub(super) fn knows_all(&self, live: bool) -> bool {
        match self.kind(live) {
            Kind::Recorded => false,
            Kind::Uniform => live || self.tactics.is_some(),
            Kind::Hf | Kind::Http => true,
        }
    }

    pub(super) fn is_recorded(&self, live: bool) -> bool {
        self.kind(live) == Kind::Recorded
    }

    /// Whether --model-path is the policy's, too.
    pub(super) fn uses_model(&self) -> bool {
        self.policy == Some(Kind::Hf)
    }

    /// Whether there is a model of its own beside another one, the encoder's.
    pub(super) fn has_another_model(&self, encoder: Option<&str>) -> bool {
        let own = self.policy_model.as_deref().filter(|_| self.uses_model());
        matches!((own, encoder), (Some(own), Some(encoder)) if own != encoder)
    }

    /// The files that are read, with their options.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let tactics = self.tactics.as_deref().map(|path| ("--tactics", path));
        let template = Path::new(&self.policy_template);
        let named = self.policy_template != RAW;
        tactics.into_iter().chain(named.then_some(("--policy-template", template)))
    }

    /// Opens the policy; says what the results depend on.
    pub(super) fn open(
        &self,
        search: &Search,
        recording: Option<&Arc<Recording>>,
        control: &Control,
    ) -> anyhow::Result<(Proposer, Value)> {
        let live = search.environment.is_live(search.theorems.is_some());
        let kind = self.kind(live);
        let recorded = || {
            let recording = recording.context("--policy recorded: needs --trajectories")?;
            anyhow::Ok(RecordedPolicy::new(Arc::clone(recording)))
        };
        Ok(match kind {
            Kind::Recorded => (Proposer::ready(recorded()?), json!("recorded")),
            Kind::Uniform if !live && self.tactics.is_none() => {
                let described = json!("uniform over the record");
                (Proposer::ready(UniformPolicy::new(recorded()?)), described)
            }
            Kind::Uniform => self.list()?,
            Kind::Hf => self.model(search)?,
            Kind::Http => self.server(search, control)?,
        })
    }

    fn list(&self) -> anyhow::Result<(Proposer, Value)> {
        let (list, text) = match &self.tactics {
            None => (TacticList::default(), "default".to_owned()),
            Some(path) => {
                let name = path.display();
                let bytes = ebm_cache::storage::read_file(path)?;
                let bytes = bytes.with_context(|| format!("{name}: no such file"))?;
                let text =
                    String::from_utf8(bytes).with_context(|| format!("{name}: is not UTF-8"))?;
                (TacticList::parse(&text).with_context(|| name.to_string())?, text)
            }
        };
        let digest = blake3::hash(text.as_bytes()).to_hex()[..32].to_owned();
        Ok((Proposer::ready(list), json!({ "kind": "uniform", "tactics": digest })))
    }

    /// The prompt of a server's model.
    fn prompt(&self) -> anyhow::Result<String> {
        if self.policy_template == RAW {
            return Ok("{state}".to_owned());
        }
        let path = std::path::Path::new(&self.policy_template);
        let bytes = ebm_cache::storage::read_file(path)?;
        let bytes = bytes.with_context(|| {
            format!("--policy-template: {}: no such file", self.policy_template)
        })?;
        let text = String::from_utf8(bytes).context("--policy-template: is not UTF-8")?;
        if text.matches("{state}").count() != 1 {
            bail!("--policy-template: has to hold {{state}} once");
        }
        Ok(text)
    }

    /// What the template of a model in this process says: a file's text, or a name that the package knows.
    fn template_text(&self) -> anyhow::Result<String> {
        let path = Path::new(&self.policy_template);
        if self.policy_template == RAW || !path.is_file() {
            return Ok(self.policy_template.clone());
        }
        std::fs::read_to_string(path).context("--policy-template: cannot be read as UTF-8")
    }

    fn model(&self, search: &Search) -> anyhow::Result<(Proposer, Value)> {
        let Some(model) = self.policy_model.as_ref().or(search.scorer.model_path.as_ref()) else {
            bail!("--policy hf: needs a model\nhint: give --policy-model, or --model-path");
        };
        let adapter = search.model.adapter.as_ref();
        let options = PythonPolicyOptions::default()
            .with_template(self.policy_template.as_str())
            .with_samples(self.candidates as usize)
            .with_decoding(if self.beam { Decoding::Beam } else { Decoding::Sample })
            .with_temperature(self.temperature)
            .with_max_new_tokens(self.max_tactic_tokens as usize)
            .with_seed(seed(search)?);
        let mut described = json!({
            "kind": "hf", "model": fingerprint(Path::new(model))?.unwrap_or_else(|| model.clone()),
            "options": search.model.describe_for_policy(), "template": self.template_text()?,
            "candidates": self.candidates, "beam": self.beam, "temperature": self.temperature,
            "tokens": self.max_tactic_tokens,
        });
        // Absent without one, as in the records of searches from before there were adapters.
        if let Some(adapter) = adapter {
            let held = fingerprint(Path::new(adapter))?;
            described["adapter"] = held.unwrap_or_else(|| adapter.clone()).into();
        }
        Ok((Proposer::Model { model: model.clone(), options }, described))
    }

    fn server(&self, search: &Search, control: &Control) -> anyhow::Result<(Proposer, Value)> {
        let url = self.policy_url.as_ref();
        let url = url.context("--policy http: needs a server\nhint: give --policy-url")?;
        let timeout = Duration::try_from_secs_f64(self.policy_timeout).ok();
        let timeout = timeout.filter(|time| !time.is_zero()).with_context(|| {
            format!("--policy-timeout: is {}, expected seconds above 0", self.policy_timeout)
        })?;
        let prompt = self.prompt()?;
        let options = HttpPolicyOptions::new(url)
            .with_model(self.policy_server_model.clone())
            .with_api(match self.policy_api {
                Api::Completions => HttpApi::Completions,
                Api::Chat => HttpApi::Chat,
            })
            .with_template(prompt.as_str())
            .with_samples(self.candidates)
            .with_temperature(self.temperature)
            .with_max_tokens(self.max_tactic_tokens)
            .with_seed(seed(search)?)
            .with_api_key_variable(self.policy_api_key.clone())
            .with_timeout(timeout);
        let policy = HttpPolicy::connect(options, control)
            .map_err(|error| anyhow::anyhow!("{}", in_options(&error)))?;
        let described = json!({
            "kind": "http", "model": policy.model(), "prompt": prompt,
            "api": self.policy_api.to_possible_value().map(|api| api.get_name().to_owned()),
            "candidates": self.candidates, "temperature": self.temperature,
            "tokens": self.max_tactic_tokens,
        });
        Ok((Proposer::ready(policy), described))
    }
}

/// What went wrong with a policy, with the options that it concerns.
pub(super) fn in_options(error: &PolicyError) -> String {
    let (PolicyError::Failed { cause, .. } | PolicyError::Unavailable { cause, .. }) = error else {
        return error.to_string();
    };
    let Some(http) = cause.downcast_ref::<HttpPolicyError>() else { return error.to_string() };
    let option = match http {
        HttpPolicyError::Option { option: "base_url", reason } => {
            return format!("--policy-url: {reason}");
        }
        HttpPolicyError::UnknownModel { .. } | HttpPolicyError::WhichModel { .. } => {
            "--policy-server-model NAME"
        }
        HttpPolicyError::ApiKey { .. } | HttpPolicyError::Status { status: 401 | 403, .. } => {
            "--policy-api-key VARIABLE"
        }
        HttpPolicyError::Status { status: 300..=399 | 404, .. } => "--policy-url URL",
        HttpPolicyError::Status { status: 429, .. } => "--threads N",
        HttpPolicyError::Unreachable { .. } => "--policy-url URL, --policy-timeout SECONDS",
        _ => return error.to_string(),
    };
    // Their hints say in words what is to be given, and end the message.
    format!("{error} ({option})")
}

fn temperature(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "expected a number of at least 0".to_owned())
}

/// What a model's folder holds: a digest of the names and contents of the files that models are made of.
/// `None` for a hub id.
fn fingerprint(folder: &Path) -> anyhow::Result<Option<String>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let place = || folder.display().to_string();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(place)? {
        let path = entry.with_context(place)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if MODEL_FILES.contains(&ending) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut all = blake3::Hasher::new();
    for path in files {
        let place = || path.display().to_string();
        let name = path.file_name().unwrap_or_default();
        let file = std::fs::File::open(&path).with_context(place)?;
        let mut own = blake3::Hasher::new();
        own.update_reader(file).with_context(place)?;
        all.update(blake3::hash(name.as_encoded_bytes()).as_bytes());
        all.update(own.finalize().as_bytes());
    }
    Ok(Some(format!("files {}", &all.finalize().to_hex()[..32])))
}
