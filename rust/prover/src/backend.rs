//! Where embeddings come from: a model in this process, or a server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use ebm_cache::Identity;
use ebm_embed::{PythonEncoder, PythonServer, PythonTime};
use ebm_encoder::remote::{RemoteEncoder, RemoteOptions};
use ebm_encoder::{Encoder, EncoderResult, Report};
use serde_json::Value;

/// Environment variable that holds the server's token, where no file is given.
const TOKEN_VARIABLE: &str = "EBM_ENCODE_TOKEN";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// A model in this process.
    Hf,
    /// `ebm-encode serve`, which has the model; starts no Python.
    Remote,
    /// An SGLang server that returns hidden states.
    Sglang,
    /// A vLLM server with mean pooling.
    Vllm,
}

/// What encodes, and where its server is.
#[derive(Debug, Args)]
pub(crate) struct BackendArguments {
    /// What encodes: a model in this process, or a server. With sglang and vllm, --model-path is the model that
    /// the server was started with: prompts are tokenized here, and answers compared with it.
    #[arg(long, value_name = "BACKEND", default_value = "hf")]
    backend: Backend,
    /// The backend's server: `http://127.0.0.1:30001`.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// File with the server's bearer token; else the environment variable `EBM_ENCODE_TOKEN`, if it is set.
    #[arg(long, value_name = "FILE")]
    server_token_file: Option<PathBuf>,
    /// Nobody else uses the server while this runs (sglang).
    #[arg(long)]
    server_exclusive: bool,
}

impl Backend {
    const fn name(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::Remote => "remote",
            Self::Sglang => "sglang",
            Self::Vllm => "vllm",
        }
    }
}

impl BackendArguments {
    /// Whether all work is a server's, so that no model and no Python is needed here.
    pub(crate) fn is_remote(&self) -> bool {
        self.backend == Backend::Remote
    }

    /// Whether a policy can share the encoder's weights.
    pub(crate) fn is_in_process(&self) -> bool {
        self.backend == Backend::Hf
    }

    /// Refuses options that do not belong together. `model` lists the given options that are of a model here.
    pub(crate) fn check(&self, model: &[&str], model_path: Option<&str>) -> anyhow::Result<()> {
        let name = self.backend.name();
        let of_server = [
            ("--server", self.server.is_some()),
            ("--server-token-file", self.server_token_file.is_some()),
            ("--server-exclusive", self.server_exclusive),
        ];
        let given: Vec<&str> =
            of_server.into_iter().filter_map(|(option, given)| given.then_some(option)).collect();
        match (self.backend, &self.server) {
            (Backend::Hf, _) if !given.is_empty() => bail!(
                "{}: --backend hf uses no server\nhint: give --backend remote, sglang or vllm",
                given.join(", ")
            ),
            (Backend::Remote | Backend::Sglang | Backend::Vllm, None) => bail!(
                "--backend {name}: needs a server\nhint: give --server, such as --server \
                 http://127.0.0.1:30001"
            ),
            _ => {}
        }
        if matches!(self.backend, Backend::Sglang | Backend::Vllm) {
            self.model_path(model_path)?;
        }
        if self.server_exclusive && self.backend != Backend::Sglang {
            bail!(
                "--server-exclusive: is for --backend sglang; a {name} server may serve others, too\n\
                 hint: leave it out"
            );
        }
        if self.is_remote() && !model.is_empty() {
            bail!(
                "{}: --backend remote has the model of its server, and its options\n\
                 hint: leave them out here, and give them to `ebm-encode serve`",
                model.join(", ")
            );
        }
        Ok(())
    }

    /// The path of a model, which all backends but `remote` need.
    pub(crate) fn model_path<'a>(&self, given: Option<&'a str>) -> anyhow::Result<&'a str> {
        let name = self.backend.name();
        given.with_context(|| {
            format!("--backend {name}: needs a model\nhint: give --model-path, or --backend remote")
        })
    }

    /// Connects to `ebm-encode serve`.
    pub(crate) fn connect(&self) -> anyhow::Result<RemoteEncoder> {
        let mut options = RemoteOptions::default();
        if let Some(path) = &self.server_token_file {
            options = options.with_token_file(path);
        } else if std::env::var_os(TOKEN_VARIABLE).is_some_and(|token| !token.is_empty()) {
            options = options.with_token_variable(TOKEN_VARIABLE);
        }
        let url = self.server.as_deref().context("--backend remote: needs --server")?;
        Ok(RemoteEncoder::connect(url, options)?)
    }

    /// What the Python package is told of the server; nothing for a model in this process.
    pub(crate) fn python_server(&self) -> anyhow::Result<Option<PythonServer>> {
        let Some(url) = self.server.as_deref().filter(|_| !self.is_in_process()) else {
            return Ok(None);
        };
        let server = PythonServer::new(self.backend.name(), url);
        Ok(Some(server.with_exclusive(self.server_exclusive).with_token(self.token()?)))
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.server_token_file else {
            return Ok(std::env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty()));
        };
        let place = format!("--server-token-file: {}", path.display());
        let token = std::fs::read_to_string(path).with_context(|| place.clone())?;
        if token.trim().is_empty() {
            bail!("{place}: is empty\nhint: the token that the server was started with");
        }
        Ok(Some(token.trim().to_owned()))
    }
}

/// An encoder of any backend.
#[derive(Debug)]
pub(crate) enum BackendEncoder {
    Python(PythonEncoder),
    Remote(RemoteEncoder),
}

impl BackendEncoder {
    /// What the encoder is made of and runs on, beside its identity.
    pub(crate) fn describe(&self) -> anyhow::Result<Value> {
        Ok(match self {
            Self::Python(encoder) => encoder.describe()?,
            Self::Remote(encoder) => encoder.info().described().clone(),
        })
    }

    /// A clock of the time that is spent in Python, where there is one.
    pub(crate) fn time(&self) -> Option<PythonTime> {
        match self {
            Self::Python(encoder) => Some(encoder.time()),
            Self::Remote(_) => None,
        }
    }

    /// The time that was spent in Python so far.
    pub(crate) fn in_python(&self) -> Duration {
        self.time().map_or(Duration::ZERO, |time| time.so_far())
    }

    fn inner(&self) -> &dyn Encoder {
        match self {
            Self::Python(encoder) => encoder,
            Self::Remote(encoder) => encoder,
        }
    }
}

impl Encoder for BackendEncoder {
    fn dim(&self) -> usize {
        self.inner().dim()
    }

    fn identity(&self) -> &Identity {
        self.inner().identity()
    }

    fn encode_into(&self, states: &[&str], rows: &mut [f32]) -> EncoderResult<Vec<Report>> {
        self.inner().encode_into(states, rows)
    }

    fn block_on(&self, wait: &mut (dyn FnMut() + Send)) {
        self.inner().block_on(wait);
    }
}
