//! How a policy is loaded and asked.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::options::PythonEncoderOptions;

/// How a policy finds tactics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Decoding {
    /// Independent samples.
    #[default]
    Sample,
    /// A beam search.
    Beam,
}

/// Options of a [`PythonPolicy`](crate::PythonPolicy).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PythonPolicyOptions {
    /// `raw`, `deepseek-prover-v2`, or a file with `{state}` in it; `raw` by default. The model goes on
    /// where it ends.
    pub template: Option<String>,
    /// Most tokens of a prompt and its tactic together; by default the model's own limit.
    pub max_length: Option<usize>,
    /// Sequences that are generated at a time; 256 by default.
    pub max_sequences: Option<usize>,
    /// Sequences for each state; equal tactics are merged.
    pub samples: usize,
    /// How they are found.
    pub decoding: Decoding,
    /// Temperature of the samples; 0 takes the most probable token.
    pub temperature: f64,
    /// Samples are drawn from the most probable tokens that make up this share.
    pub top_p: f64,
    /// Most tokens of a tactic. One that has not ended by then is no candidate.
    pub max_new_tokens: usize,
    /// Texts that end a tactic.
    pub stop: Vec<String>,
    /// Seed of the samples. With a state's text it decides them.
    pub seed: i64,
    /// Most states of one call of Python; a caller that asks for more has a call to itself.
    pub max_states: usize,
    /// How long a call waits for more callers, where the call before had several.
    pub max_wait: Duration,
}

impl Default for PythonPolicyOptions {
    fn default() -> Self {
        Self {
            template: None,
            max_length: None,
            max_sequences: None,
            samples: 8,
            decoding: Decoding::default(),
            temperature: 1.0,
            top_p: 1.0,
            max_new_tokens: 128,
            stop: vec!["\n".to_owned()],
            seed: 0,
            max_states: 64,
            max_wait: Duration::from_millis(5),
        }
    }
}

impl PythonPolicyOptions {
    /// Sets the template.
    #[must_use]
    pub fn with_template<'a>(mut self, template: impl Into<Option<&'a str>>) -> Self {
        self.template = template.into().map(str::to_owned);
        self
    }

    /// Sets the most tokens of a prompt and its tactic.
    #[must_use]
    pub fn with_max_length(mut self, max_length: impl Into<Option<usize>>) -> Self {
        self.max_length = max_length.into();
        self
    }

    /// Sets the sequences that are generated at a time.
    #[must_use]
    pub fn with_max_sequences(mut self, max_sequences: impl Into<Option<usize>>) -> Self {
        self.max_sequences = max_sequences.into();
        self
    }

    /// Sets the sequences for each state.
    #[must_use]
    pub fn with_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Sets how tactics are found.
    #[must_use]
    pub fn with_decoding(mut self, decoding: Decoding) -> Self {
        self.decoding = decoding;
        self
    }

    /// Sets the temperature.
    #[must_use]
    pub fn with_temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets the share of the most probable tokens.
    #[must_use]
    pub fn with_top_p(mut self, top_p: f64) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets the most tokens of a tactic.
    #[must_use]
    pub fn with_max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Sets the texts that end a tactic.
    #[must_use]
    pub fn with_stop<T: Into<String>>(mut self, stop: impl IntoIterator<Item = T>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: i64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the most states of one call of Python.
    #[must_use]
    pub fn with_max_states(mut self, max_states: usize) -> Self {
        self.max_states = max_states;
        self
    }

    /// Sets how long a call waits for more callers.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Arguments of `TacticPolicy.beside`.
    pub(crate) fn arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        if let Some(template) = &self.template {
            arguments.set_item("template", template)?;
        }
        let numbers = [("max_length", self.max_length), ("max_sequences", self.max_sequences)];
        for (name, number) in numbers {
            if let Some(number) = number {
                arguments.set_item(name, number)?;
            }
        }
        Ok(arguments)
    }

    /// Arguments of `TacticPolicy.load`.
    pub(crate) fn arguments_with_model<'py>(
        &self,
        py: Python<'py>,
        model: &PythonEncoderOptions,
    ) -> PyResult<Bound<'py, PyDict>> {
        let arguments = self.arguments(py)?;
        arguments.set_item("model_path", &model.model_path)?;
        arguments.set_item("trust_remote_code", model.trust_remote_code)?;
        let texts = [
            ("dtype", &model.dtype),
            ("device", &model.device),
            ("revision", &model.revision),
            ("code_revision", &model.code_revision),
            ("adapter", &model.adapter),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                arguments.set_item(name, text)?;
            }
        }
        Ok(arguments)
    }

    /// Arguments of `TacticPolicy.propose`.
    pub(crate) fn call_arguments<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let arguments = PyDict::new(py);
        arguments.set_item("n", self.samples)?;
        let mode = match self.decoding {
            Decoding::Sample => "sample",
            Decoding::Beam => "beam",
        };
        arguments.set_item("mode", mode)?;
        arguments.set_item("temperature", self.temperature)?;
        arguments.set_item("top_p", self.top_p)?;
        arguments.set_item("max_new_tokens", self.max_new_tokens)?;
        arguments.set_item("stop", &self.stop)?;
        arguments.set_item("seed", self.seed)?;
        Ok(arguments)
    }
}
