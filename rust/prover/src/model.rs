//! Which encoder to use: options that all commands with a model share.

use std::path::PathBuf;

use clap::Args;
use ebm_embed::{EmbedError, Interpreter, PythonEncoder, PythonEncoderOptions};

use crate::formats::FormatArguments;

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
}

impl PythonArguments {
    pub(crate) fn start(&self) -> Result<&'static Interpreter, EmbedError> {
        Interpreter::start(self.python.as_deref())
    }
}

impl ModelArguments {
    pub(crate) fn load(
        &self,
        python: &'static Interpreter,
        model_path: &str,
    ) -> Result<PythonEncoder, EmbedError> {
        PythonEncoder::load(python, &self.options(model_path))
    }

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
    }
}
