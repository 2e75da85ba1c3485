//! Which encoder to use: options that all commands with a model share.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use ebm_embed::{EmbedError, Interpreter, PythonEncoder, PythonEncoderOptions};
use ebm_encoder::Encoder;
use serde_json::{Value, json};

use crate::backend::{BackendArguments, BackendEncoder};
use crate::formats::{FormatArguments, format_of};

/// Where Python is.
#[derive(Debug, Args)]
pub(crate) struct PythonArguments {
    /// The virtual environment (or the interpreter) to use; else `VIRTUAL_ENV`, else the first
    /// python3 on PATH.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
}

/// How the model is loaded and used. What is not given is as for `ebm-encode encode`.
#[derive(Debug, Args)]
pub(crate) struct ModelArguments {
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    /// `raw`, `deepseek-prover-v2`, or a file with `{state}` in it.
    #[arg(long)]
    template: Option<String>,
    /// Compute dtype: auto, float32, bfloat16 or float16.
    #[arg(long)]
    dtype: Option<String>,
    /// Any torch device; auto is the first accelerator, else the CPU.
    #[arg(long)]
    device: Option<String>,
    /// mean or last.
    #[arg(long)]
    pooling: Option<String>,
    /// Which hidden state; -1 is the last, after the final norm.
    #[arg(long, allow_negative_numbers = true)]
    layer: Option<i64>,
    /// Longest prompt in tokens; by default the model's own limit.
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// What to do with longer ones: skip (the default), truncate, or truncate-state, which drops hypotheses.
    #[arg(long)]
    overlong: Option<String>,
    /// Most tokens of one forward pass.
    #[arg(long, value_name = "TOKENS")]
    max_batch_tokens: Option<usize>,
    /// Most states of one forward pass.
    #[arg(long, value_name = "STATES")]
    batch_size: Option<usize>,
    /// How states go through the model: auto, shared-prefix, packed, padded, ...
    #[arg(long)]
    engine: Option<String>,
    #[command(flatten)]
    pub(crate) formats: FormatArguments,
    /// Threads of torch within one operation.
    #[arg(long, value_name = "N")]
    torch_threads: Option<usize>,
    /// Branch, tag or commit of a hub id.
    #[arg(long)]
    revision: Option<String>,
    /// Run code that comes with the model.
    #[arg(long)]
    trust_remote_code: bool,
    /// Commit of that code, where it is in another repository than the model.
    #[arg(long, value_name = "COMMIT")]
    code_revision: Option<String>,
    /// PEFT adapter that is merged into the model: a folder, or a hub id, with @REVISION behind it if
    /// wanted.
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<String>,
}

impl PythonArguments {
    /// Refuses one that is not there, whether or not it turns out to be needed.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.interpreter().map(|_| ())
    }

    /// The interpreter that was named, by itself or by its environment.
    pub(crate) fn interpreter(&self) -> anyhow::Result<Option<PathBuf>> {
        let Some(named) = &self.python else { return Ok(None) };
        let python = if named.is_dir() { named.join("bin").join("python") } else { named.clone() };
        let on_path = || {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            python.components().count() == 1
                && std::env::split_paths(&paths).any(|folder| folder.join(&python).is_file())
        };
        let there = python.is_file() || on_path();
        there.then_some(Some(python)).with_context(|| {
            format!(
                "--python: {}: there is no Python\nhint: the folder of a virtual environment, or an \
                 interpreter",
                named.display()
            )
        })
    }

    pub(crate) fn start(&self) -> Result<&'static Interpreter, EmbedError> {
        Interpreter::start(self.python.as_deref())
    }
}

impl ModelArguments {
    /// Refuses options that do not belong together, before anything is loaded.
    ///
    /// `policy_model`: whether the options of a model here are (also) those of a policy.
    pub(crate) fn check(&self, model_path: Option<&str>, policy_model: bool) -> anyhow::Result<()> {
        let mut given = self.given();
        if model_path.is_some() {
            given.insert(0, "--model-path");
        }
        if policy_model {
            given.clear();
        }
        self.backend.check(&given, model_path)
    }

    /// The options that were given and that only a model in this process has.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--template", self.template.is_some()),
            ("--dtype", self.dtype.is_some()),
            ("--device", self.device.is_some()),
            ("--pooling", self.pooling.is_some()),
            ("--layer", self.layer.is_some()),
            ("--max-length", self.max_length.is_some()),
            ("--overlong", self.overlong.is_some()),
            ("--max-batch-tokens", self.max_batch_tokens.is_some()),
            ("--batch-size", self.batch_size.is_some()),
            ("--engine", self.engine.is_some()),
            ("--torch-threads", self.torch_threads.is_some()),
            ("--revision", self.revision.is_some()),
            ("--trust-remote-code", self.trust_remote_code),
            ("--code-revision", self.code_revision.is_some()),
            ("--adapter", self.adapter.is_some()),
        ];
        all.into_iter().filter_map(|(option, given)| given.then_some(option)).collect()
    }

    /// Loads the model, or connects to the server that has it.
    pub(crate) fn load(
        &self,
        python: &PythonArguments,
        model_path: Option<&str>,
    ) -> anyhow::Result<BackendEncoder> {
        if self.backend.is_remote() {
            return self.connect();
        }
        let options = self.encoder_options(self.backend.model_path(model_path)?)?;
        Ok(BackendEncoder::Python(PythonEncoder::load(python.start()?, &options)?))
    }

    /// Connects to a server, and compares the form of states that it takes.
    fn connect(&self) -> anyhow::Result<BackendEncoder> {
        let encoder = self.backend.connect()?;
        let takes = format_of(Some(encoder.identity()))?;
        if let Some(wanted) = self.formats.option()
            && wanted != takes.option()
        {
            let takes = takes.option();
            bail!(
                "--state-format {wanted}: the server's encoder takes {takes}\nhint: give \
                 --state-format {takes}, or start `ebm-encode serve` with --state-format {wanted}"
            );
        }
        Ok(BackendEncoder::Remote(encoder))
    }

    /// What a policy's tactics depend on, beside its own options: those of its model that are given.
    pub(crate) fn describe_for_policy(&self) -> Value {
        json!({
            "dtype": self.dtype, "revision": self.revision, "code_revision": self.code_revision,
        })
    }

    /// Options of the encoder: those of the model, and its server.
    pub(crate) fn encoder_options(&self, model_path: &str) -> anyhow::Result<PythonEncoderOptions> {
        Ok(self.options(model_path).with_server(self.backend.python_server()?))
    }

    /// Options of a model in this process.
    pub(crate) fn options(&self, model_path: &str) -> PythonEncoderOptions {
        PythonEncoderOptions::new(model_path)
            .with_template(self.template.as_deref())
            .with_dtype(self.dtype.as_deref())
            .with_device(self.device.as_deref())
            .with_pooling(self.pooling.as_deref())
            .with_layer(self.layer)
            .with_max_length(self.max_length)
            .with_overlong(self.overlong.as_deref())
            .with_max_batch_tokens(self.max_batch_tokens)
            .with_batch_size(self.batch_size)
            .with_engine(self.engine.as_deref())
            .with_state_format(self.formats.option())
            .with_threads(self.torch_threads)
            .with_revision(self.revision.as_deref())
            .with_trust_remote_code(self.trust_remote_code)
            .with_code_revision(self.code_revision.as_deref())
            .with_adapter(self.adapter.as_deref())
    }
}
