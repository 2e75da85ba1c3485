//! How a model is loaded and used.

use std::fmt;

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Options of an encoder, as those of `ebm-encode encode`; what is not given is the same as there.
///
/// All but `device`, `max_batch_tokens`, `batch_size`, `engine`, `threads` and `keep_head` are part of
/// the encoder's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PythonEncoderOptions {
    /// A model's folder, or its hub id.
    pub model_path: String,
    /// `raw`, `deepseek-prover-v2`, or a file with `{state}` in it.
    pub template: Option<String>,
    /// `float32`, `bfloat16`, `float16`, or `auto`: the one that the model's `config.json` names, or else the
    /// one that its weights are stored in.
    pub dtype: Option<String>,
    /// Any torch device; `auto` is the first accelerator, else the CPU.
    pub device: Option<String>,
    /// `mean` or `last`.
    pub pooling: Option<String>,
    /// Which hidden state; -1 is the last, after the final norm.
    pub layer: Option<i64>,
    /// Longest prompt in tokens; by default the model's own limit.
    pub max_length: Option<usize>,
    /// What to do with longer ones: `error` or `skip` (the default), which report them; `truncate`, which cuts
    /// them as transformers does; `truncate-state`, which drops hypotheses of the state.
    pub overlong: Option<String>,
    /// Most tokens of one forward pass; 8,192 by default.
    pub max_batch_tokens: Option<usize>,
    /// Most states of one forward pass; by default one for each 32 tokens, and at least 256.
    pub batch_size: Option<usize>,
    /// How states go through the model.
    pub engine: Option<String>,
    /// The printed form of the states that are encoded: `lean`, `pantograph`, `burnqed`, or `as-given` (the
    /// default), which takes any text. Texts in another form are refused; convert them first.
    pub state_format: Option<String>,
    /// Branch, tag or commit of a hub id.
    pub revision: Option<String>,
    /// Whether code that comes with the model may run.
    pub trust_remote_code: bool,
    /// Commit of that code, where it is in another repository than the model.
    pub code_revision: Option<String>,
    /// A PEFT adapter that is merged into the model: its folder, or its hub id, with `@` and a revision
    /// behind it if wanted. Needs peft beside the Python package.
    pub adapter: Option<String>,
    /// Threads of torch within one operation; fewer leave cores to the host's own threads.
    pub threads: Option<usize>,
    /// Whether the language-model head stays in memory, so that a
    /// [`PythonPolicy`](crate::PythonPolicy) can share the weights.
    pub keep_head: bool,
    /// The server that encodes in place of the model; `None` for the model in this process.
    pub server: Option<PythonServer>,
}

/// A server that the Python package asks: an SGLang or a vLLM server.
#[derive(Clone, PartialEq, Eq)]
pub struct PythonServer {
    backend: String,
    url: String,
    exclusive: bool,
    token: Option<String>,
}

impl fmt::Debug for PythonServer {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, url, exclusive, token } = self;
        let token = token.as_ref().map(|_| "..");
        let mut shown = f.debug_struct("PythonServer");
        shown.field("backend", backend).field("url", url).field("exclusive", exclusive);
        shown.field("token", &token).finish()
    }
}

impl PythonServer {
    /// A server of a kind, `sglang` or `vllm`, that others may use as well.
    #[must_use]
    pub fn new(backend: impl Into<String>, url: impl Into<String>) -> Self {
        Self { backend: backend.into(), url: url.into(), exclusive: false, token: None }
    }

    /// Says whether nobody else uses the server.
    #[must_use]
    pub fn with_exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Sets the bearer token. It is not shown by `Debug`.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<Option<String>>) -> Self {
        self.token = token.into();
        self
    }
}

/// Methods that set one field each, where `None` leaves what the package takes by default.
macro_rules! setters {
    ($($(#[$doc:meta])* $method:ident, $field:ident: $kind:tt,)*) => {
        $(setters!(@one $(#[$doc])* $method, $field, $kind);)*
    };
    (@one $(#[$doc:meta])* $method:ident, $field:ident, text) => {
        $(#[$doc])*
        #[must_use]
        pub fn $method<'a>(mut self, $field: impl Into<Option<&'a str>>) -> Self {
            self.$field = $field.into().map(str::to_owned);
            self
        }
    };
    (@one $(#[$doc:meta])* $method:ident, $field:ident, $number:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $method(mut self, $field: impl Into<Option<$number>>) -> Self {
            self.$field = $field.into();
            self
        }
    };
}

impl PythonEncoderOptions {
    /// The usual options for a model.
    #[must_use]
    pub fn new(model_path: impl Into<String>) -> Self {
        Self {
            model_path: model_path.into(),
            template: None,
            dtype: None,
            device: None,
            pooling: None,
            layer: None,
            max_length: None,
            overlong: None,
            max_batch_tokens: None,
            batch_size: None,
            engine: None,
            state_format: None,
            revision: None,
            trust_remote_code: false,
            code_revision: None,
            adapter: None,
            threads: None,
            keep_head: false,
            server: None,
        }
    }

    setters! {
        /// Sets the template.
        with_template, template: text,
        /// Sets the compute dtype.
        with_dtype, dtype: text,
        /// Sets the device.
        with_device, device: text,
        /// Sets the pooling.
        with_pooling, pooling: text,
        /// Sets the hidden state.
        with_layer, layer: i64,
        /// Sets the longest prompt.
        with_max_length, max_length: usize,
        /// Sets what to do with longer prompts.
        with_overlong, overlong: text,
        /// Sets the most tokens of one forward pass.
        with_max_batch_tokens, max_batch_tokens: usize,
        /// Sets the most states of one forward pass.
        with_batch_size, batch_size: usize,
        /// Sets the engine.
        with_engine, engine: text,
        /// Sets the printed form of the states.
        with_state_format, state_format: text,
        /// Sets the revision of a hub id.
        with_revision, revision: text,
        /// Sets the commit of the model's code.
        with_code_revision, code_revision: text,
        /// Sets the adapter that is merged into the model.
        with_adapter, adapter: text,
        /// Sets the threads of torch.
        with_threads, threads: usize,
    }

    /// Sets whether code that comes with the model may run.
    #[must_use]
    pub fn with_trust_remote_code(mut self, trust: bool) -> Self {
        self.trust_remote_code = trust;
        self
    }

    /// Sets whether the language-model head stays in memory.
    #[must_use]
    pub fn with_keep_head(mut self, keep: bool) -> Self {
        self.keep_head = keep;
        self
    }

    /// Sets the server that encodes.
    #[must_use]
    pub fn with_server(mut self, server: impl Into<Option<PythonServer>>) -> Self {
        self.server = server.into();
        self
    }

    /// Arguments of `Encoder.load`.
    pub(crate) fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        arguments.set_item("model_path", &self.model_path)?;
        arguments.set_item("trust_remote_code", self.trust_remote_code)?;
        arguments.set_item("keep_head", self.keep_head)?;
        let texts = [
            ("template", &self.template),
            ("dtype", &self.dtype),
            ("device", &self.device),
            ("pooling", &self.pooling),
            ("overlong", &self.overlong),
            ("engine", &self.engine),
            ("state_format", &self.state_format),
            ("revision", &self.revision),
            ("code_revision", &self.code_revision),
            ("adapter", &self.adapter),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                arguments.set_item(name, text)?;
            }
        }
        let numbers = [
            ("max_length", self.max_length),
            ("max_batch_tokens", self.max_batch_tokens),
            ("batch_size", self.batch_size),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                arguments.set_item(name, number)?;
            }
        }
        if let Some(layer) = self.layer {
            arguments.set_item("layer", layer)?;
        }
        if let Some(server) = &self.server {
            arguments.set_item("backend", &server.backend)?;
            arguments.set_item("server", &server.url)?;
            arguments.set_item("server_exclusive", server.exclusive)?;
            arguments.set_item("server_token", server.token.as_deref())?;
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::{PythonEncoderOptions, PythonServer};

    #[test]
    fn debug_shows_no_token() {
        let server = PythonServer::new("vllm", "http://h:1").with_token("s3cret".to_owned());
        let options = PythonEncoderOptions::new("m").with_server(server);
        let shown = format!("{options:?}");
        assert!(!shown.contains("s3cret") && shown.contains("http://h:1"), "{shown}");
    }
}
