//! An object that is read, of one version from opening to end.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};

use super::requests::wait;
use super::{Object, one_line};
use crate::format::error::CacheResult;
use crate::storage::failure::LastRead;
use crate::storage::input::Remote;
use crate::storage::kept::{Pool, Slot};
use crate::storage::version::Tag;

/// The end of an object that opening it brings along: the metadata of most caches.
const TAIL: u64 = 256 * 1024;
/// The ends that are kept, 64 MiB; a cache may have thousands of parts.
static TAILS: Pool<Bytes> = Pool::new(256);

/// A request that a store did not answer as it should; nothing is known of the object.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct StoreFailure(String);

impl StoreFailure {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// An object that is read: the same content from opening to end.
#[derive(Debug)]
pub(super) struct OpenObject {
    object: Object,
    tag: Tag,
    length: u64,
    /// Where its last bytes begin.
    tail_start: u64,
    /// Those bytes, while they are kept.
    tail: Arc<Slot<Bytes>>,
    /// What kept it from being read; the Parquet reader makes a text of it.
    last_read: LastRead,
}

impl OpenObject {
    /// Opens an object, in one request.
    pub(super) fn open(object: Object) -> CacheResult<Self> {
        let (store, key) = object.client()?;
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
        let (length, slot) = (meta.size, Slot::empty());
        let tail_start = length.saturating_sub(tail.len() as u64);
        TAILS.keep(&slot, tail);
        let last_read = LastRead::default();
        Ok(Self { object, tag, length, tail_start, tail: slot, last_read })
    }
}

impl Remote for OpenObject {
    fn len(&self) -> u64 {
        self.length
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if range.start >= self.tail_start
            && let Some(tail) = self.tail.get()
        {
            self.last_read.succeeded();
            let inside = |at: u64| usize::try_from(at - self.tail_start).map_err(io::Error::other);
            return Ok(tail.slice(inside(range.start)?..inside(range.end)?));
        }
        let (store, key) = self.object.client().map_err(io::Error::other)?;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.tag.e_tag.clone(),
            // Where tags tell versions apart, readers need no right to old ones.
            version: self.tag.version.clone().filter(|_| self.tag.e_tag.is_none()),
            ..GetOptions::default()
        };
        let read = wait(async move { store.get_opts(&key, options).await?.bytes().await });
        let failure = match read {
            Ok(Ok(bytes)) => {
                self.last_read.succeeded();
                return Ok(bytes);
            }
            Ok(Err(object_store::Error::Precondition { .. })) => {
                StoreFailure::of("another process replaced it meanwhile; open it again")
            }
            Ok(Err(error)) => StoreFailure::of(one_line(&error)),
            Err(error) => StoreFailure::of(error),
        };
        self.last_read.failed(io::Error::other(failure.clone()));
        Err(io::Error::other(failure))
    }

    fn failure(&self) -> Option<io::Error> {
        self.last_read.failure()
    }
}
