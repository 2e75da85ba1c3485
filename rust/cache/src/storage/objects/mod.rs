//! Objects of S3 and Google Cloud Storage, through the `object_store` crate.

pub(super) mod clients;
#[cfg(feature = "test-util")]
pub mod faulty;
mod open;
mod requests;
mod upload;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};

use clients::store_of;
use open::OpenObject;
use requests::wait;
use upload::Upload;

use super::input::Input;
use super::sink::{Sink, Written};
use super::store::{Kind, Size, Store, Write};
use super::version::{Replaces, Tag, Version};
use crate::format::error::{CacheError, CacheResult};

/// One object, or the common beginning of several.
#[derive(Clone)]
pub(crate) struct Object {
    store: Arc<dyn ObjectStore>,
    /// The process whose threads serve the store's connections.
    process: u32,
    scheme: String,
    bucket: String,
    key: Key,
    path: PathBuf,
}

/// What may be in the place of an object that is written.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    Anything,
    Nothing,
    Tagged(Tag),
}

impl Condition {
    fn of(replaces: Replaces<'_>) -> Self {
        match replaces {
            Replaces::Version(Version::Object(tag)) => Self::Tagged(tag.clone()),
            Replaces::Nothing => Self::Nothing,
            // A version of a file of this machine is never one of an object.
            Replaces::Anything | Replaces::Version(_) => Self::Anything,
        }
    }
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

    /// The object's present version; `None` where there is no such object.
    fn tag(&self) -> CacheResult<Option<Tag>> {
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
    fn bytes(&self) -> CacheResult<Option<(Bytes, Tag)>> {
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
            && let Some((there, tag)) = self.bytes()?
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
            Condition::Nothing | Condition::Tagged(_) => self.tag()?,
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

    pub(super) fn wrong(&self, action: &'static str, error: Error) -> CacheError {
        wrong(&self.path, action, error)
    }
}

impl Store for Object {
    fn local(&self) -> Option<&Path> {
        None
    }

    fn kind(&self) -> CacheResult<Kind> {
        if self.tag()?.is_some() {
            return Ok(Kind::File);
        }
        Ok(if self.list()?.is_empty() { Kind::Missing } else { Kind::Folder })
    }

    fn is_file(&self) -> CacheResult<bool> {
        Ok(self.tag()?.is_some())
    }

    fn version(&self) -> CacheResult<Option<Version>> {
        Ok(self.tag()?.map(Version::Object))
    }

    fn read(&self) -> CacheResult<Option<(Vec<u8>, Version)>> {
        Ok(self.bytes()?.map(|(bytes, tag)| (bytes.into(), Version::Object(tag))))
    }

    fn list(&self) -> CacheResult<Vec<PathBuf>> {
        let (store, key) = self.client()?;
        let found = wait(async move { store.list_with_delimiter(Some(&key)).await })?;
        let found = found.map_err(|error| self.wrong("list", error))?;
        let names = found.objects.iter().filter_map(|meta| meta.location.filename());
        Ok(names.map(|name| self.path.join(name)).collect())
    }

    fn remove(&self) -> CacheResult<()> {
        let (store, key) = self.client()?;
        match wait(async move { store.delete(&key).await })? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.wrong("remove", error)),
        }
    }

    fn open(&self) -> CacheResult<Input> {
        Ok(Input::remote(OpenObject::open(self.clone())?))
    }

    fn replace(&self, bytes: &[u8], replaces: Replaces<'_>) -> CacheResult<Version> {
        self.put(bytes.to_vec(), &Condition::of(replaces)).map(Version::Object)
    }

    /// Of an object of many pieces, what is replaced is looked at just before the last of them is sent:
    /// no store that we reach makes a condition of that.
    fn write(
        &self,
        _: &Path,
        size: Size,
        replaces: Replaces<'_>,
        write: Write<'_>,
    ) -> CacheResult<Written> {
        let condition = Condition::of(replaces);
        if size == Size::Large {
            let upload = Upload::new(self.clone(), condition);
            return write(Sink::remote(&self.path, Box::new(upload)))?.finish();
        }
        let sink = write(Sink::in_memory(&self.path))?;
        Ok(sink.put(|bytes| self.put(bytes, &condition))?.0)
    }

    fn remove_temporary(&self) -> CacheResult<()> {
        Ok(()) // unfinished uploads are not there yet
    }

    fn output_path(&self) -> CacheResult<PathBuf> {
        if self.is_bucket() {
            let message = "is a bucket; name a file or a folder in it";
            return Err(CacheError::Argument(format!("{}: {message}", self.path.display())));
        }
        Ok(PathBuf::from(self.path.to_string_lossy().trim_end_matches('/').to_owned()))
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
             AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS), and this machine has none: \
             {text}"
        );
    }
    text
}
