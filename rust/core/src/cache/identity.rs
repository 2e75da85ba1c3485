//! The identity of an encoder: everything that changes its numbers beyond rounding.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The identity of the encoder that made a cache, as it stands in the footer.
///
/// Two caches, or a cache and an encoder, may be combined only if [`differences`] is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Digest of the weight files the model loads: `blake3:<hex>`.
    pub weights: String,
    /// Digest of `config.json` without keys that change no number: `blake3:<hex>`.
    pub config: String,
    /// Digest of the code that came with the model and was let run: `blake3:<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Digest of the tokenizer as it runs: `blake3:<hex>`.
    pub tokenizer: String,
    /// The template's whole text, with `{state}` where the state goes.
    pub template: String,
    /// The rule by which special tokens are added.
    pub special_tokens: String,
    /// `mean` or `last`.
    pub pooling: String,
    /// Index of the hidden state, as in Hugging Face `hidden_states`; -1 is after the final norm.
    pub layer: i32,
    /// Compute dtype: `float32`, `bfloat16` or `float16`.
    pub dtype: String,
    /// `none`, or the model's quantisation settings as JSON.
    pub quantization: String,
    /// Longest prompt in tokens; `None` where no prompt is ever cut.
    pub max_length: Option<u64>,
    /// Which end of an overlong prompt is cut: `right`, or `none` where none is cut.
    pub truncation: String,
    /// Fields of a later version; kept, compared and written back.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

impl Identity {
    /// Reads an identity from its JSON object.
    ///
    /// # Errors
    /// The reason in words, where a field is missing or of another type.
    pub fn from_json(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| format!("not an encoder identity: {error}"))
    }

    /// The identity as a JSON object.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.fields()).to_string()
    }

    /// Digest of the whole identity, for naming files and for a quick comparison: 32 hex digits.
    #[must_use]
    pub fn digest(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex()[..32].to_owned()
    }

    fn fields(&self) -> serde_json::Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a struct of strings and integers serialises to an object"),
        }
    }
}

/// One field in which two identities differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDifference {
    /// Name of the field.
    pub field: String,
    /// Its value on the left, or `unknown`.
    pub left: String,
    /// Its value on the right, or `unknown`.
    pub right: String,
}

impl fmt::Display for FieldDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, left, right } = self;
        write!(f, "{field} ({} here, {} there)", shorten(left), shorten(right))
    }
}

/// The fields in which two identities differ; an unknown identity differs from every other.
///
/// Two unknown identities differ as well: nothing shows that they are the same.
#[must_use]
pub fn differences(left: Option<&Identity>, right: Option<&Identity>) -> Vec<FieldDifference> {
    let (Some(left), Some(right)) = (left, right) else {
        let name = |side: Option<&Identity>| match side {
            Some(identity) => identity.digest(),
            None => "unknown".to_owned(),
        };
        let field = "identity".to_owned();
        return vec![FieldDifference { field, left: name(left), right: name(right) }];
    };
    let (left, right) = (left.fields(), right.fields());
    let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let show = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "unknown".to_owned(),
    };
    names
        .into_iter()
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| FieldDifference {
            field: name.clone(),
            left: show(left.get(name)),
            right: show(right.get(name)),
        })
        .collect()
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 48;
    let text = text.escape_debug().to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("…".chars()).collect()
}
