//! Objects of S3 and Google Cloud Storage, through the `object_store` crate.
//!
//! Its calls are asynchronous; ours wait for them, on threads of our own, so that they can be made from
//! any thread, one of an asynchronous host's included.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Key;
use object_store::{
    ClientConfigKey, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode,
    StaticCredentialProvider, UpdateVersion, WriteMultipart,
};
use tokio::runtime::{Builder, Runtime};

use crate::cache::error::{CacheError, CacheResult};

/// The end of an object that opening it brings along: the metadata of most caches.
const TAIL: u64 = 256 * 1024;
/// The pieces that a large object is sent in. A store takes ten thousand of them.
const PIECE: usize = 16 * 1024 * 1024;
/// Pieces on their way at a time.
const PIECES_AT_ONCE: usize = 4;
/// Where Google's own libraries look for a server other than Google's, which asks for no name.
const GOOGLE_EMULATOR: &str = "STORAGE_EMULATOR_HOST";
/// The longest that one request may take: a row group over a slow line.
const TIMEOUT: &str = "120 s";

/// One object, or the common beginning of several.
pub(in crate::cache) struct Object {
    store: Arc<dyn ObjectStore>,
    key: Key,
    path: PathBuf,
}

/// What tells two contents of an object apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tag {
    e_tag: Option<String>,
    version: Option<String>,
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
        Ok(Self { store, key, path: path.to_owned() })
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
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        match wait(async move { store.head(&key).await })? {
            Ok(meta) => Ok(Some(Tag { e_tag: meta.e_tag, version: meta.version })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.wrong("open", error)),
        }
    }

    /// All bytes; `None` where there is no such object.
    pub(super) fn read(&self) -> CacheResult<Option<(Bytes, Tag)>> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let read = wait(async move {
            let got = store.get(&key).await?;
            let tag = Tag { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
            Ok((got.bytes().await?, tag))
        })?;
        match read {
            Ok(read) => Ok(Some(read)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.wrong("read", error)),
        }
    }

    /// The names of the objects right below this one.
    pub(super) fn list(&self) -> CacheResult<Vec<String>> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let found = wait(async move { store.list_with_delimiter(Some(&key)).await })?;
        let found = found.map_err(|error| self.wrong("list", error))?;
        let name = |key: &Key| Some(key.filename()?.to_owned());
        Ok(found.objects.iter().filter_map(|meta| name(&meta.location)).collect())
    }

    pub(super) fn remove(&self) -> CacheResult<()> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        match wait(async move { store.delete(&key).await })? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.wrong("remove", error)),
        }
    }

    /// Writes all bytes, in the place of the object with this tag, or of none.
    pub(super) fn put(&self, bytes: Vec<u8>, former: Option<&Tag>) -> CacheResult<()> {
        let mode = former.map_or(PutMode::Create, |tag| {
            let Tag { e_tag, version } = tag.clone();
            PutMode::Update(UpdateVersion { e_tag, version })
        });
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let bytes = Bytes::from(bytes);
        let payload = bytes.clone().into();
        let put = wait(async move { store.put_opts(&key, payload, mode.into()).await })?;
        match put {
            Ok(_) => Ok(()),
            // The answer to a first try may have been lost, and a second finds what that wrote.
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) if self.read()?.is_some_and(|(there, _)| there == bytes) => Ok(()),
            Err(error) => Err(self.wrong("write", error)),
        }
    }

    /// Begins to write a large object, in the place of any other.
    pub(super) fn upload(self) -> CacheResult<Upload> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let upload = wait(async move { store.put_multipart(&key).await })?;
        let upload = upload.map_err(|error| self.wrong("write", error))?;
        let write = WriteMultipart::new_with_chunk_size(upload, PIECE);
        Ok(Upload { object: self, write: Some(write), piece: Vec::new() })
    }

    fn wrong(&self, action: &'static str, error: object_store::Error) -> CacheError {
        wrong(&self.path, action, error)
    }
}

/// A request that a store did not answer as it should; nothing is known of the object.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(in crate::cache) struct StoreFailure(String);

impl StoreFailure {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// An object that is read: the same content from opening to end.
#[derive(Debug)]
pub(in crate::cache) struct OpenObject {
    object: Object,
    tag: Tag,
    length: u64,
    /// Its last bytes.
    tail: Bytes,
    /// What kept it from being read; the Parquet reader makes a text of it.
    failure: Mutex<Option<StoreFailure>>,
}

impl OpenObject {
    /// Opens an object, in one request.
    pub(in crate::cache) fn open(object: Object) -> CacheResult<Self> {
        let (store, key) = (Arc::clone(&object.store), object.key.clone());
        let opened = wait(async move {
            let range = Some(GetRange::Suffix(TAIL));
            match store.get_opts(&key, GetOptions { range, ..GetOptions::default() }).await {
                Ok(got) => Ok((got.meta.clone(), got.bytes().await?)),
                // Nothing has no end that could be asked for.
                Err(error) => match store.head(&key).await {
                    Ok(meta) if meta.size == 0 => Ok((meta, Bytes::new())),
                    _ => Err(error),
                },
            }
        })?;
        let (meta, tail) = opened.map_err(|error| object.wrong("open", error))?;
        let tag = Tag { e_tag: meta.e_tag, version: meta.version };
        Ok(Self { object, tag, length: meta.size, tail, failure: Mutex::default() })
    }

    /// Its length in bytes.
    pub(in crate::cache) fn len(&self) -> u64 {
        self.length
    }

    /// Some of its bytes; an error if it was replaced after it was opened.
    pub(in crate::cache) fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let tail_start = self.length - self.tail.len() as u64;
        if range.start >= tail_start {
            let inside = |at: u64| usize::try_from(at - tail_start).map_err(io::Error::other);
            return Ok(self.tail.slice(inside(range.start)?..inside(range.end)?));
        }
        let (store, key) = (Arc::clone(&self.object.store), self.object.key.clone());
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.tag.e_tag.clone(),
            // Where tags tell versions apart, readers need no right to old ones.
            version: self.tag.version.clone().filter(|_| self.tag.e_tag.is_none()),
            ..GetOptions::default()
        };
        let read = wait(async move { store.get_opts(&key, options).await?.bytes().await });
        let failure = match read {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(object_store::Error::Precondition { .. })) => {
                StoreFailure::of("another process replaced it meanwhile; open it again")
            }
            Ok(Err(error)) => StoreFailure::of(one_line(&error)),
            Err(error) => StoreFailure::of(error),
        };
        let mut last = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        Err(io::Error::other(last.insert(failure).clone()))
    }

    /// What kept it from being read, if anything did.
    pub(in crate::cache) fn failure(&self) -> Option<StoreFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A large object on its way to the store; dropped, it is given up.
pub(super) struct Upload {
    object: Object,
    write: Option<WriteMultipart>,
    /// The piece under way.
    piece: Vec<u8>,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({})", self.object.path.display())
    }
}

impl Upload {
    pub(super) fn path(&self) -> &Path {
        &self.object.path
    }

    /// Takes bytes, and waits while too many are on their way.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.piece.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(taken.len())
    }

    fn send(&mut self) -> io::Result<()> {
        let mut write = self.write.take().ok_or_else(|| io::Error::other("the upload failed"))?;
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE)));
        let (write, room) = wait(async move {
            let room = write.wait_for_capacity(PIECES_AT_ONCE).await;
            write.put(piece);
            (write, room)
        })
        .map_err(io::Error::other)?;
        self.write = Some(write);
        room.map_err(io::Error::other)
    }

    /// Sends the rest; only then is the object there.
    pub(super) fn finish(mut self) -> CacheResult<()> {
        self.send().map_err(|error| CacheError::io(&self.object.path, "write", error))?;
        let Some(write) = self.write.take() else { return Ok(()) };
        let done = wait(async move { write.finish().await })?;
        done.map(|_| ()).map_err(|error| self.object.wrong("write", error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            // What the store keeps of it is no object; the error at hand says more.
            let _ = wait(async move { write.abort().await });
        }
    }
}

fn wrong(path: &Path, action: &'static str, error: object_store::Error) -> CacheError {
    use object_store::Error;
    match error {
        Error::NotFound { .. } => {
            let detail = "no such object".to_owned();
            CacheError::NotFound { path: path.to_owned(), detail }
        }
        Error::AlreadyExists { .. } | Error::Precondition { .. } => {
            CacheError::Locked { path: path.to_owned() }
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
fn one_line(error: &object_store::Error) -> String {
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

/// Waits for a request; any thread may.
fn wait<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> CacheResult<T> {
    static RUNTIME: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ebm-encode-objects")
            .enable_all()
            .build()
    });
    let failed = |why: String| CacheError::Argument(format!("object stores: {why}"));
    let runtime = RUNTIME.as_ref().map_err(|error| failed(error.to_string()))?;
    let (sender, receiver) = flume::bounded(1);
    runtime.spawn(async move { sender.send(request.await) });
    receiver.recv().map_err(|_| failed("the request was dropped".to_owned()))
}

/// The store of a bucket, with the settings that the environment has for it.
fn store_of(scheme: &str, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    type Stores = HashMap<(String, Vec<(String, String)>), Arc<dyn ObjectStore>>;
    static STORES: LazyLock<Mutex<Stores>> = LazyLock::new(Mutex::default);
    let bucket = format!("{scheme}://{bucket}");
    let settings = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| {
            name.starts_with("AWS_") || name.starts_with("GOOGLE_") || name == GOOGLE_EMULATOR
        })
        .collect();
    let key = (bucket, settings);
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(&key) {
        return Ok(Arc::clone(store));
    }
    let store: Arc<dyn ObjectStore> = if scheme == "gs" {
        let mut builder = GoogleCloudStorageBuilder::from_env()
            .with_url(&key.0)
            .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT);
        if let Some((_, host)) = key.1.iter().find(|(name, _)| name == GOOGLE_EMULATOR) {
            let url = if host.contains("://") { host.clone() } else { format!("http://{host}") };
            let nobody = GcpCredential { bearer: String::new() };
            builder = builder
                .with_base_url(&url)
                .with_credentials(Arc::new(StaticCredentialProvider::new(nobody)))
                .with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
        }
        Arc::new(builder.build()?)
    } else {
        let mut builder = AmazonS3Builder::from_env()
            .with_url(&key.0)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), TIMEOUT);
        // Who names such an endpoint wants it.
        let plain = |(name, value): &(String, String)| {
            name.starts_with("AWS_ENDPOINT") && value.starts_with("http://")
        };
        if key.1.iter().any(plain) {
            builder = builder.with_allow_http(true);
        }
        Arc::new(builder.build()?)
    };
    stores.insert(key, Arc::clone(&store));
    Ok(store)
}
