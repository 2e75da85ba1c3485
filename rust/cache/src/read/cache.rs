//! A cache, wherever its rows are while it is open.

use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::folder::parts::open_files;
use crate::format::error::CacheResult;
use crate::format::options::{OpenMode, OpenOptions};
use crate::read::contents::{Contents, contents_methods};
use crate::read::in_memory::EmbeddingCache;
use crate::read::mapped::MappedCache;

/// A cache in memory or in mapped files; a clone is another reference to it.
///
/// ```no_run
/// use ebm_cache::{Cache, OpenMode};
///
/// let cache = Cache::open("states.parquet", OpenMode::Auto)?;
/// if let Some(embedding) = cache.get("⊢ 1 = 1")? {
///     assert_eq!(embedding.len(), cache.dim());
/// }
/// # Ok::<(), ebm_cache::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub enum Cache {
    /// In one buffer of this process.
    InMemory(Arc<EmbeddingCache>),
    /// In files that are shared with other processes.
    Mapped(Arc<MappedCache>),
}

impl From<EmbeddingCache> for Cache {
    fn from(cache: EmbeddingCache) -> Self {
        Arc::new(cache).into()
    }
}

impl From<Arc<EmbeddingCache>> for Cache {
    fn from(cache: Arc<EmbeddingCache>) -> Self {
        Self::InMemory(cache)
    }
}

impl From<MappedCache> for Cache {
    fn from(cache: MappedCache) -> Self {
        Arc::new(cache).into()
    }
}

impl From<Arc<MappedCache>> for Cache {
    fn from(cache: Arc<MappedCache>) -> Self {
        Self::Mapped(cache)
    }
}

/// Calls a method that both kinds have.
macro_rules! either {
    ($cache:expr, $inner:ident => $call:expr) => {
        match $cache {
            Cache::InMemory($inner) => $call,
            Cache::Mapped($inner) => $call,
        }
    };
}

impl Cache {
    /// Opens a cache file, or a folder of them.
    ///
    /// # Errors
    /// As for [`EmbeddingCache::open`] or [`MappedCache::open`].
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> CacheResult<Self> {
        Self::open_with(path, mode, OpenOptions::default())
    }

    /// Opens a cache, with its checks on or off.
    ///
    /// # Errors
    /// As for [`Cache::open`].
    pub fn open_with(
        path: impl AsRef<Path>,
        mode: OpenMode,
        options: OpenOptions,
    ) -> CacheResult<Self> {
        let path = path.as_ref();
        let mapped = match mode {
            OpenMode::InMemory => false,
            OpenMode::Mapped => true,
            OpenMode::Auto => Self::prefers_mapped(path, free_memory())?,
        };
        if mapped {
            return MappedCache::open_with(path, options).map(Self::from);
        }
        EmbeddingCache::open_with(path, options).map(Self::from)
    }

    /// Whether [`OpenMode::Auto`] would map a cache where so many bytes are free; `None` if that is not
    /// known. Reads the metadata of its files.
    ///
    /// # Errors
    /// Any [`CacheError`](crate::CacheError) that says why the path is not a cache.
    pub fn prefers_mapped(path: impl AsRef<Path>, free: Option<u64>) -> CacheResult<bool> {
        let files = open_files(path.as_ref())?;
        let sizes = files.iter().map(|file| file.num_rows().saturating_mul(file.dim()));
        let bytes = sizes.fold(0_usize, usize::saturating_add).saturating_mul(size_of::<f32>());
        let fits = free.is_none_or(|free| bytes as u64 <= free / 2);
        // Objects cannot be mapped, and pages that other software wrote may not be readable by address.
        Ok(!fits && files.iter().all(|file| file.is_ours() && !file.is_object()))
    }

    /// The embedding of a state; `None` where the cache has none. Borrowed from memory, or copied out of
    /// mapped files.
    ///
    /// # Errors
    /// As for [`MappedCache::gather_rows`]; none of a cache in memory.
    pub fn get(&self, state: &str) -> CacheResult<Option<Cow<'_, [f32]>>> {
        match self {
            Self::InMemory(cache) => Ok(cache.get(state).map(Cow::Borrowed)),
            Self::Mapped(cache) => {
                let Some(number) = cache.position(state) else { return Ok(None) };
                let mut row = vec![0.0; cache.dim()];
                cache.gather_rows(&[number], &mut row)?;
                Ok(Some(Cow::Owned(row)))
            }
        }
    }

    /// Copies the embeddings of several states, in their order, into memory of the caller
    /// (`states.len() x dim`, row-major).
    ///
    /// # Errors
    /// [`CacheError::Unknown`](crate::CacheError::Unknown), listing states that the cache does not
    /// have; [`CacheError::Argument`](crate::CacheError::Argument) if `rows` has another length;
    /// and as for [`MappedCache::gather_rows`].
    pub fn gather<S: AsRef<str> + Sync>(&self, states: &[S], rows: &mut [f32]) -> CacheResult<()> {
        either!(self, cache => cache.gather(states, rows))
    }

    /// Copies the rows with these numbers, in this order, into memory of the caller
    /// (`numbers.len() x dim`, row-major).
    ///
    /// # Errors
    /// As for [`Cache::gather`].
    pub fn gather_rows(&self, numbers: &[usize], rows: &mut [f32]) -> CacheResult<()> {
        either!(self, cache => cache.gather_rows(numbers, rows))
    }

    contents_methods!();

    fn contents(&self) -> &Contents {
        either!(self, cache => cache.contents())
    }
}

/// Bytes that this process may still use, where the system tells: of the machine, and of its control
/// group.
#[must_use]
pub fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let free = kibibytes.checked_mul(1024)?;
    Some(free_in_group().map_or(free, |group| group.min(free)))
}

/// Bytes that the control group of a container has left, by version 2 of control groups or by version 1.
fn free_in_group() -> Option<u64> {
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let left = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    // A limit of `max` is no number: there is none.
    left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        let folder = "/sys/fs/cgroup/memory/memory";
        left(&format!("{folder}.limit_in_bytes"), &format!("{folder}.usage_in_bytes"))
    })
}
