//! What a cache file says about itself: one JSON value under one key, and a few flat copies.

use parquet::file::metadata::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::format::identity::Identity;
use crate::format::runs::Run;
use crate::format::schema::{FORMAT_VERSION, METADATA_KEY};

/// A state's 128-bit key: the first half of its BLAKE3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey([u8; 16]);

impl StateKey {
    /// The key of a state's text, byte for byte.
    #[must_use]
    pub fn of(state: &str) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(state.as_bytes()).as_bytes()[..16]);
        Self(key)
    }

    /// The key as 32 hex digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The key of 32 hex digits; `None` for anything else.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None; // the parser would take fewer digits, and a sign
        }
        u128::from_str_radix(hex, 16).ok().map(|key| Self(key.to_be_bytes()))
    }
}

/// The JSON value under [`METADATA_KEY`] in a cache file's footer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Footer {
    /// Version of this value and of the file's layout.
    pub format_version: u32,
    /// Length of every embedding.
    pub dim: usize,
    /// Number of rows in this file.
    pub rows: u64,
    /// The encoder that made the rows.
    pub identity: Identity,
    /// The rest worth knowing of the last run: versions, device, command, times, sources, counts,
    /// verification.
    pub provenance: Value,
    /// The runs that made the rows, in the order of their rows; empty where one run made all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
    /// Pairs of states with the same tokens, and so rightly with equal rows, by hex state key.
    #[serde(default)]
    pub same_tokens: Vec<(String, String)>,
    /// In a checkpoint: states whose rows before it were taken back, by hex state key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_back: Vec<String>,
    /// In a checkpoint: numbers of rows of this file that were taken back before it was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dead: Vec<u64>,
}

impl Footer {
    /// The runs that made the rows, also of a file that was written before runs were kept.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        if self.runs.is_empty() {
            return vec![Run::new(self.rows, self.provenance.clone())];
        }
        self.runs.clone()
    }

    /// Reads the footer from a file's metadata; `None` where other software wrote the file.
    pub(crate) fn from_metadata(metadata: Option<&Vec<KeyValue>>) -> Result<Option<Self>, String> {
        let entry = metadata.into_iter().flatten().find(|entry| entry.key == METADATA_KEY);
        let Some(entry) = entry else { return Ok(None) };
        let json = entry.value.as_deref().unwrap_or_default();
        let digest = metadata.into_iter().flatten().find(|entry| entry.key == digest_key());
        if digest.is_some_and(|digest| digest.value.as_deref() != Some(&digest_of(json))) {
            return Err(format!("damaged: the footer's {METADATA_KEY:?} is not what was written"));
        }
        let fail = |error| format!("footer key {METADATA_KEY:?} does not hold our JSON: {error}");
        let value: Value = serde_json::from_str(json).map_err(fail)?;
        let version = value.get("format_version").and_then(Value::as_u64);
        if version.is_some_and(|version| version > u64::from(FORMAT_VERSION)) {
            let found = version.unwrap_or_default();
            return Err(format!(
                "written in format version {found}, this build reads up to {FORMAT_VERSION}; \
                 update ebm-encode"
            ));
        }
        serde_json::from_value(value).map(Some).map_err(fail)
    }

    /// The footer entries to write: the JSON value, and flat copies of the most wanted fields.
    pub(crate) fn to_metadata(&self) -> Result<Vec<KeyValue>, serde_json::Error> {
        let model = self.provenance.get("model").and_then(Value::as_str).unwrap_or("unknown");
        let flat = [
            ("model", model.to_owned()),
            ("dtype", self.identity.dtype.clone()),
            ("pooling", self.identity.pooling.clone()),
            ("dim", self.dim.to_string()),
            ("rows", self.rows.to_string()),
            ("identity_digest", self.identity.digest()),
        ];
        let json = serde_json::to_string(self)?;
        let digest = KeyValue::new(digest_key(), digest_of(&json));
        let whole = KeyValue::new(METADATA_KEY.to_owned(), json);
        let flat = flat
            .into_iter()
            .map(|(name, value)| KeyValue::new(format!("{METADATA_KEY}.{name}"), value));
        Ok([whole, digest].into_iter().chain(flat).collect())
    }
}

/// Where the digest of the JSON value stands: no page checksum covers a file's metadata.
fn digest_key() -> String {
    format!("{METADATA_KEY}.digest")
}

/// Whether a file's metadata holds our keys: one flipped bit may hide them from its reader.
pub(crate) fn mentions_ours(metadata: &[u8]) -> bool {
    let key = digest_key();
    metadata.windows(key.len()).any(|window| window == key.as_bytes())
}

fn digest_of(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_hex().to_string()
}
