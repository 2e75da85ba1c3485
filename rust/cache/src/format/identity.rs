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
    ///
    /// The BLAKE3 digest of the JSON object without spaces, keys of every object sorted by code point.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut text = String::new();
        write_sorted(&Value::Object(self.fields()), &mut text);
        blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
    }

    fn fields(&self) -> serde_json::Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => unreachable!("a struct of strings and integers serialises to an object"),
        }
    }
}

/// Writes a value with sorted keys. In what order `serde_json` keeps an object's keys depends on a feature
/// (`preserve_order`) that any other crate of a build may switch on; the digest must not depend on it.
fn write_sorted(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            text.push('{');
            for (i, (name, value)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::String(name.clone()).to_string());
                text.push(':');
                write_sorted(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_sorted(item, text);
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
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
        let same = left.chars().zip(right.chars()).take_while(|(l, r)| l == r).count();
        write!(f, "{field} ({} here, {} there)", excerpt(left, same), excerpt(right, same))
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

/// The part of a text around its character number `at`, on one line; `…` where something is cut.
fn excerpt(text: &str, at: usize) -> String {
    const LONGEST: usize = 48;
    const BEFORE: usize = 16;
    let length = text.chars().count();
    // The whole text if it is short, the last characters if the difference is near the end.
    let start = at.saturating_sub(BEFORE).min(length.saturating_sub(LONGEST));
    let part: String = text.chars().skip(start).take(LONGEST).collect();
    let mut shown = part.escape_debug().to_string();
    if start > 0 {
        shown.insert(0, '…');
    }
    if start + LONGEST < length {
        shown.push('…');
    }
    shown
}
