//! What a server says of itself.

use ebm_cache::{Identity, differences};
use ebm_http::Reply;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, IDENTITY_HEADER, INSTANCE_HEADER};
use super::error::RemoteError;

const SOFTWARE: &str = "ebm-encode";

/// What a server said of itself at connect.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteInfo {
    version: String,
    instance: String,
    identity: Identity,
    digest: String,
    dim: usize,
    limits: Limits,
    described: Value,
}

/// What one request may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Limits {
    pub(super) max_texts: usize,
    pub(super) max_body_bytes: usize,
    pub(super) queue_texts: usize,
}

/// The fields of `/info` that are needed.
#[derive(Deserialize)]
struct Fields {
    version: String,
    instance: String,
    identity: Value,
    identity_digest: String,
    dim: usize,
    limits: Limits,
}

impl RemoteInfo {
    /// Asks a server; waits, within the retries, until it is ready.
    pub(super) async fn ask(client: &Client) -> Result<Self, RemoteError> {
        client.get("health").await?;
        let reply = client.get("info").await?;
        let info = Self::read(&reply, &client.url("info"))?;
        let Some(wanted) = &client.options().identity else { return Ok(info) };
        let differs = differences(Some(wanted), Some(&info.identity));
        if differs.is_empty() {
            return Ok(info);
        }
        Err(RemoteError::OtherEncoder {
            url: client.url("info"),
            expected: wanted.digest(),
            found: info.digest,
            differs: differs.iter().map(ToString::to_string).collect(),
        })
    }

    fn read(reply: &Reply, url: &str) -> Result<Self, RemoteError> {
        let other = |reason: String| RemoteError::OtherSoftware { url: url.to_owned(), reason };
        let wrong = |reason: String| RemoteError::Answer { url: url.to_owned(), reason };
        let described: Value =
            serde_json::from_slice(&reply.body).map_err(|error| other(error.to_string()))?;
        let software = described.get("software").and_then(Value::as_str);
        if software != Some(SOFTWARE) {
            return Err(other(format!("`software` is {software:?}, expected {SOFTWARE:?}")));
        }
        let fields = Fields::deserialize(&described).map_err(|error| wrong(error.to_string()))?;
        let identity = Identity::from_json(&fields.identity.to_string()).map_err(wrong)?;
        let digest = identity.digest();
        let said = [&fields.identity_digest, reply.header(&IDENTITY_HEADER)];
        if let Some(other) = said.into_iter().find(|said| **said != digest) {
            let reason = format!("its identity has digest {digest}, and it says {other:?}");
            return Err(wrong(reason));
        }
        let limits = fields.limits;
        let counts = [fields.dim, limits.max_texts, limits.max_body_bytes, limits.queue_texts];
        if counts.contains(&0) || fields.dim > 1 << 24 {
            return Err(wrong(format!("`dim` {} and `limits` {limits:?}", fields.dim)));
        }
        let Fields { version, instance, dim, .. } = fields;
        Ok(Self { version, instance, identity, digest, dim, limits, described })
    }

    /// The server's version of ebm-encode.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A name of the server's process, another one after each start.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// All that the server says of itself: also its model, engine, limits and versions.
    #[must_use]
    pub const fn described(&self) -> &Value {
        &self.described
    }

    pub(super) const fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) const fn dim(&self) -> usize {
        self.dim
    }

    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }

    /// Refuses an answer of another encoder; notes when the server was restarted.
    pub(super) fn require_same(&self, reply: &Reply, url: &str) -> Result<(), RemoteError> {
        let found = reply.header(&IDENTITY_HEADER);
        if found.is_empty() {
            let reason = format!("without a header {IDENTITY_HEADER}");
            return Err(RemoteError::Answer { url: url.to_owned(), reason });
        }
        if found != self.digest {
            return Err(self.other(found, url));
        }
        if reply.header(&INSTANCE_HEADER) != self.instance {
            tracing::debug!(url, "the server was restarted since, with the same encoder");
        }
        Ok(())
    }

    pub(super) fn other(&self, found: &str, url: &str) -> RemoteError {
        RemoteError::OtherEncoder {
            url: url.to_owned(),
            expected: self.digest.clone(),
            found: found.chars().take(64).collect(),
            differs: Vec::new(),
        }
    }
}
