//! Objects of S3 and Google Cloud Storage, through the `object_store` crate.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};

use super::requests::wait;
use super::stores::store_of;
use super::upload::Upload;
use crate::cache::error::{CacheError, CacheResult};

/// One object, or the common beginning of several.
pub(in crate::cache) struct Object {
    store: Arc<dyn ObjectStore>,
    /// The process whose threads serve the store's connections.
    process: u32,
    scheme: String,
    bucket: String,
    key: Key,
    path: PathBuf,
}

/// What tells two contents of an object apart.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Tag {
    pub(super) e_tag: Option<String>,
    pub(super) version: Option<String>,
}

impl PartialEq for Tag {
    /// A store may leave the version out of some of its answers, so it counts only where there is no
    /// other sign.
    fn eq(&self, other: &Self) -> bool {
        match (&self.e_tag, &other.e_tag) {
            (Some(this), Some(other)) => this == other,
            _ => self.version.is_some() && self.version == other.version,
        }
    }
}

impl Eq for Tag {}

/// What may be in the place of an object that is written.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    Anything,
    Nothing,
    Tagged(Tag),
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({})", self.path.display())
    }
}

impl Object {
    /// The object of a bucket; `path` is its whole URL.
    pub(super) fn at(path: &Path, scheme: &str, bucket: &str, key: &str) -> CacheResult<Self> {
        let refuse =
            |why: String| CacheError::Argument(format!("{}: not usable: {why}", path.display()));
        let key = Key::parse(key).map_err(|error| refuse(error.to_string()))?;
        if bucket.is_empty() {
            return Err(refuse("the URL names no bucket".to_owned()));
        }
        let store = store_of(scheme, bucket).map_err(|error| refuse(error.to_string()))?;
        let (scheme, bucket, path) = (scheme.to_owned(), bucket.to_owned(), path.to_owned());
        Ok(Self { store, process: process::id(), scheme, bucket, key, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The store and the object's key in it, for one request.
    pub(super) fn client(&self) -> CacheResult<(Arc<dyn ObjectStore>, Key)> {
        let store = if self.process == process::id() {
            Arc::clone(&self.store)
        } else {
            // Opened before a fork: the connections are the other process's.
            store_of(&self.scheme, &self.bucket).map_err(|error| self.wrong("open", error))?
        };
        Ok((store, self.key.clone()))
    }

    /// Whether it is a whole bucket.
    pub(super) fn is_bucket(&self) -> bool {
        self.key.as_ref().is_empty()
    }

    pub(super) fn kind(&self) -> CacheResult<super::Kind> {
        if self.version()?.is_some() {
            return Ok(super::Kind::File);
        }
        let empty = self.list()?.is_empty();
        Ok(if empty { super::Kind::Missing } else { super::Kind::Folder })
    }

    /// The object's present version; `None` where there is no such object.
    pub(super) fn version(&self) -> CacheResult<Option<Tag>> {
        if self.is_bucket() {
            return Ok(None);
        }
        let (store, key) = self.client()?;
        match wait(async move { store.head(&key).await })? {
            Ok(meta) => Ok(Some(Tag { e_tag: meta.e_tag, version: meta.version })),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.wrong("open", error)),
        }
    }

    /// All bytes; `None` where there is no such object.
    pub(super) fn read(&self) -> CacheResult<Option<(Bytes, Tag)>> {
        let (store, key) = self.client()?;
        let read = wait(async move {
            let got = store.get(&key).await?;
            let tag = Tag { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
            Ok((got.bytes().await?, tag))
        })?;
        match read {
            Ok(read) => Ok(Some(read)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.wrong("read", error)),
        }
    }

    /// The names of the objects right below this one.
    pub(super) fn list(&self) -> CacheResult<Vec<String>> {
        let (store, key) = self.client()?;
        let found = wait(async move { store.list_with_delimiter(Some(&key)).await })?;
        let found = found.map_err(|error| self.wrong("list", error))?;
        let name = |key: &Key| Some(key.filename()?.to_owned());
        Ok(found.objects.iter().filter_map(|meta| name(&meta.location)).collect())
    }

    pub(super) fn remove(&self) -> CacheResult<()> {
        let (store, key) = self.client()?;
        match wait(async move { store.delete(&key).await })? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.wrong("remove", error)),
        }
    }

    /// Writes all bytes, in the place of what the condition says; returns the new tag.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] where something else is there.
    pub(super) fn put(&self, bytes: Vec<u8>, condition: &Condition) -> CacheResult<Tag> {
        let mode = match condition.clone() {
            Condition::Anything => PutMode::Overwrite,
            Condition::Nothing => PutMode::Create,
            Condition::Tagged(Tag { e_tag, version }) => {
                PutMode::Update(UpdateVersion { e_tag, version })
            }
        };
        let (store, key) = self.client()?;
        let bytes = Bytes::from(bytes);
        let payload = bytes.clone().into();
        let put = wait(async move { store.put_opts(&key, payload, mode.into()).await })?;
        let error = match put {
            Ok(put) => return Ok(Tag { e_tag: put.e_tag, version: put.version }),
            Err(error) => error,
        };
        if matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. })
            // The answer to a first try may have been lost, and a second finds what that wrote.
            && let Some((there, tag)) = self.read()?
            && there == bytes
        {
            return Ok(tag);
        }
        Err(self.wrong("write", error))
    }

    /// Refuses what is in the place of an object now, if it is not what the condition says.
    pub(super) fn require(&self, condition: &Condition) -> CacheResult<()> {
        let there = match condition {
            Condition::Anything => return Ok(()),
            Condition::Nothing | Condition::Tagged(_) => self.version()?,
        };
        let allowed = match condition {
            Condition::Tagged(tag) => Some(tag),
            Condition::Anything | Condition::Nothing => None,
        };
        if there.as_ref() == allowed {
            return Ok(());
        }
        Err(CacheError::Conflict { path: self.path.clone() })
    }

    /// Begins to write a large object.
    pub(super) fn upload(self, condition: Condition) -> Upload {
        Upload::new(self, condition)
    }

    pub(super) fn wrong(&self, action: &'static str, error: Error) -> CacheError {
        wrong(&self.path, action, error)
    }
}

fn wrong(path: &Path, action: &'static str, error: Error) -> CacheError {
    match error {
        Error::NotFound { .. } => {
            let detail = "no such object".to_owned();
            CacheError::NotFound { path: path.to_owned(), detail }
        }
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            CacheError::Conflict { path: path.to_owned() }
        }
        error => {
            let error = one_line(&error);
            if error.contains("NoSuchBucket") {
                let detail = "there is no such bucket".to_owned();
                return CacheError::NotFound { path: path.to_owned(), detail };
            }
            CacheError::io(path, action, io::Error::other(error))
        }
    }
}

/// An error's text: stores answer in many lines of XML, and a machine of no cloud has no keys to give.
pub(super) fn one_line(error: &Error) -> String {
    const METADATA_SERVICE: &str = "169.254.169.254";
    let text = error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if text.contains(METADATA_SERVICE) {
        return format!(
            "no credentials: the environment names none (AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS), and this machine has none \
             of its own: {text}"
        );
    }
    text
}
